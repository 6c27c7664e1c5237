"""The first minutes in a real browser: from an empty directory to an image and a chart, and out."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page
from werkzeug.wrappers import Response

from gateway.config import Settings
from tests.cli.test_cli_manners import fresh_folder
from tests.cli.test_quickstart import started
from tests.console.test_oidc import console
from tests.console.test_oidc import person as claims
from tests.console_browser import CHROMIUM, NO_BROWSER, REPORT_VIOLATIONS, Faults, chromium
from tests.harness import GPT2, GatewayProcess, Served
from tests.identity_provider import REALM, Issuer

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)
MAX_CLICKS_TO_IMAGE = 3
MAX_CLICKS_TO_CHART = 2


class Hand:
    """A hand that counts its clicks; what it types is free."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.clicks = 0

    async def click(self, target: Locator) -> None:
        """Click once."""
        self.clicks += 1
        await target.click()

    async def press(self, name: str, role: Any = "button") -> None:
        """Click what has this name."""
        await self.click(self._page.get_by_role(role, name=name, exact=True).first)


async def window(browser: Browser, base_url: str, faults: Faults) -> Page:
    """A window without any session."""
    context = await browser.new_context(base_url=base_url, locale="en-GB")
    await context.add_init_script(REPORT_VIOLATIONS)
    faults.watch(context)
    context.set_default_timeout(10_000)
    return await context.new_page()


@pytest.fixture(scope="module")
def installed() -> Iterator[GatewayProcess]:
    """`gateway serve` on an empty directory, at a terminal."""
    with fresh_folder() as folder, started(folder, on_terminal=True) as process:
        yield process


@pytest.mark.asyncio
async def test_from_the_printed_link_to_an_image_a_chart_a_key_and_a_budget(
    installed: GatewayProcess,
) -> None:
    printed = await asyncio.to_thread(installed.log.read_text)
    start = f"{installed.base_url}/console/login/link?token="
    link = next(word for word in printed.split() if word.startswith(start))
    faults = Faults(urlsplit(installed.base_url).netloc)
    async with chromium() as browser:
        page = await window(browser, installed.base_url, faults)
        await page.goto(link)
        assert await first_image(page) <= MAX_CLICKS_TO_IMAGE
        assert await first_chart(page) <= MAX_CLICKS_TO_CHART
        secret = await new_key(page)
        async with openai.AsyncOpenAI(
            api_key=secret, base_url=f"{installed.base_url}/v1", max_retries=0
        ) as client:
            assert await buy(client) == 200
            await set_budget(page, "0.000001")
            assert await buy(client) == 402
            await set_budget(page, "5")
            assert await buy(client) == 200
    assert faults.found == []


async def first_image(page: Page) -> int:
    """Make an image of the sandbox, from the operator's first page; return the clicks."""
    hand = Hand(page)
    await hand.press("Open the portal of default")
    await hand.press("Make an image", "link")
    await page.get_by_label("Prompt").fill("A lighthouse at dawn")
    await hand.press("Make image")
    image = page.locator("#output .result img")
    await image.wait_for()
    assert await image.evaluate("image => image.decode().then(() => image.naturalWidth > 0)")
    return hand.clicks


async def first_chart(page: Page) -> int:
    """Look at a chart with a cost; return the clicks."""
    hand = Hand(page)
    await hand.press("Home", "link")
    await hand.press("Test", "link")
    await page.locator(".chart .slot").first.wait_for(state="attached")
    assert await page.locator(".chart").first.is_visible()
    shown = await page.locator(".tile__value").first.inner_text()
    assert re.fullmatch(r"\$0\.\d*[1-9]\d*", shown), shown
    return hand.clicks


async def new_key(page: Page) -> str:
    """Make a key for test mode by a double click, and reload the page that shows its secret.

    Neither makes a second one.
    """
    await page.goto("/console/keys/new?mode=test")
    await page.get_by_label("Name", exact=True).fill("sdk")
    await page.get_by_role("button", name="Create key").dblclick()
    secret = await page.locator("#secret").inner_text()
    await page.reload()
    await page.get_by_text("was shown already").wait_for()
    assert secret not in await page.content()
    await page.goto("/console/keys?mode=test")
    assert await page.get_by_role("link", name="sdk", exact=True).count() == 1
    return secret


async def set_budget(page: Page, dollars: str) -> None:
    """Set the budget of the key for a month."""
    await page.goto("/console/portal/budgets")
    form = page.locator("form", has=page.get_by_role("button", name="Set budget"))
    await form.get_by_label("API key").fill("sdk")
    await form.get_by_label("Limit in US dollars").fill(dollars)
    await form.get_by_role("button", name="Set budget").click()
    await page.get_by_role("status").get_by_text("The budget was set").wait_for()


async def buy(client: openai.AsyncOpenAI) -> int:
    """Ask for an image by the official SDK; return the status of the answer."""
    try:
        await client.images.generate(model=GPT2, prompt="a kite", quality="low")
    except openai.APIStatusError as refusal:
        return refusal.status_code
    return 200


@pytest_asyncio.fixture
async def desk(settings: Settings, issuer: Issuer) -> AsyncIterator[Served]:
    """A gateway whose people sign in at the identity provider."""
    async with console(settings, issuer) as served:
        yield served


@pytest.mark.asyncio
async def test_a_person_signs_in_at_the_provider_and_a_sign_out_really_ends(
    desk: Served, issuer: Issuer
) -> None:
    issuer.signed_in = claims("ada", "admins")
    for path in (f"{REALM}/logout", "/favicon.ico"):
        issuer.answers[path] = lambda: Response("Signed out.")
    faults = Faults(urlsplit(desk.base_url).netloc)
    async with chromium() as browser:
        page = await window(browser, desk.base_url, faults)
        await page.goto("/console/people")
        await page.wait_for_url("**/console/login?next=**")
        await page.get_by_role("link", name="Sign in with").click()
        await page.wait_for_url("**/console/people")
        assert await page.get_by_text("Ada").first.is_visible()
        kept = await page.context.cookies()
        await page.goto("/console/tenants")
        await page.get_by_role("button", name="Sign out").click()
        # The answer leads on to the provider, so that its own session ends too.
        await page.wait_for_url(f"{issuer.url}/logout?**")
        for _ in range(2):
            await page.go_back()
        assert "/console/login" in page.url
        assert not await page.get_by_text("Ada").count()
        await page.context.add_cookies(kept)  # type: ignore[arg-type]  # as the browser gave them
        await page.goto("/console/people")
        assert "ended=signed_out" in page.url
    assert [one for one in faults.found if f"{issuer.url}/" not in one] == []
    assert issuer.asked[f"{REALM}/token"] == 1
