"""Operators' changes by a browser's own forms and dialogs, as tenants then feel them."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Request

from gateway.console.pages.overview import EVENTS
from tests.console_browser import CHROMIUM, NO_BROWSER, Visitor, signed_in
from tests.console_scene import LOW
from tests.harness import PostgresServer, Served, make_settings, served_gateway

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER),
]
DARK = 80
TURN = """hidden => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""
"""Hide the tab, or show it: a browser without a screen hides none by itself."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """One gateway for the file."""
    url = await postgres.create()
    async with served_gateway(make_settings(url, tmp_path_factory.mktemp("forms"))) as running:
        yield running
    await postgres.drop(url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def visitor(served: Served) -> AsyncIterator[Visitor]:
    """An operator with a browser; at the end no page may have had a fault."""
    async with signed_in(served) as someone:
        yield someone


async def buy(served: Served, secret: str) -> int:
    """Ask for an image of the sandbox; return the status."""
    async with served.http(secret) as http:
        answer = await http.post("/v1/images/generations", json={**LOW, "prompt": "a kite"})
    return answer.status_code


@pytest.mark.parametrize("scripts", [True, False])
async def test_a_key_is_made_used_and_revoked_with_and_without_scripts(
    served: Served, visitor: Visitor, *, scripts: bool
) -> None:
    place = f"/console/tenants/{served.tenant_id}/keys"
    page = await visitor.visit(place, scripts=scripts)
    await page.get_by_label("Name").fill(f"kiosk {scripts}")
    await page.get_by_label("Mode", exact=True).select_option("test")
    await page.get_by_role("button", name="Create").click()
    secret = await page.locator("#new-secret").inner_text()
    assert await buy(served, secret) == 200
    await page.goto(place)
    row = page.get_by_role("row", name=f"kiosk {scripts}")
    await row.get_by_role("button", name="Revoke", exact=True).first.click()
    dialog = page.get_by_role("dialog")
    assert "cannot be undone" in await dialog.inner_text()
    await dialog.get_by_role("button", name="Revoke").click()
    await page.wait_for_url("**done=revoked")
    assert await buy(served, secret) == 401


async def test_a_budget_is_raised_and_felt_at_the_next_call(
    served: Served, visitor: Visitor
) -> None:
    key = await served.key(livemode=False)
    await served.budget("0.001", livemode=False)
    assert await buy(served, key.secret.reveal()) == 402
    page = await visitor.visit(f"/console/tenants/{served.tenant_id}/budgets")
    await page.get_by_text("Raise for a time").click()
    until = datetime.now(UTC) + timedelta(hours=1)
    await page.get_by_label("Raise to, US dollars").fill("5")
    await page.get_by_label("Until (UTC)").fill(until.strftime("%Y-%m-%dT%H:%M"))
    await page.get_by_label("Reason").fill("a workshop")
    await page.get_by_role("button", name="Raise", exact=True).click()
    await page.wait_for_url("**done=raised")
    assert await buy(served, key.secret.reveal()) == 200


async def test_a_failed_request_is_found_by_the_id_that_the_client_sent(
    served: Served, visitor: Visitor
) -> None:
    key = await served.key(livemode=False, name="finder")
    async with served.http(key) as http:
        await http.post(
            "/v1/images/generations",
            json={**LOW, "prompt": "[sandbox:moderation] a kite"},
            headers={"X-Request-Id": "ticket-4711"},
        )
    await served.gateway.request_log.flush()
    page = await visitor.visit("/console/requests")
    await page.get_by_label("Request id").fill("ticket-4711")
    await page.get_by_label("Request id").press("Enter")
    await page.wait_for_url("**id=ticket-4711*")
    await page.locator("tbody th a").click()
    await page.wait_for_url("**/console/requests/req_*")
    assert "moderation_blocked" in await page.locator("#admission").inner_text()


async def test_the_live_figures_of_a_tab_are_not_sent_while_it_is_hidden(visitor: Visitor) -> None:
    page = await (await visitor.context()).new_page()

    def is_live(request: Request) -> bool:
        return urlsplit(request.url).path == EVENTS

    async with page.expect_response(lambda answer: is_live(answer.request)):
        await page.goto("/console")
    async with page.expect_event("requestfailed", is_live):
        await page.evaluate(TURN, arg=True)
    async with page.expect_response(lambda answer: is_live(answer.request)):
        await page.evaluate(TURN, arg=False)


async def test_a_printed_page_has_its_figures_and_no_controls(visitor: Visitor) -> None:
    page = await visitor.visit("/console/tenants", theme="dark")
    await page.emulate_media(media="print")
    assert await page.locator("main h1").is_visible()
    assert await page.locator("main table").first.is_visible()
    assert await page.locator(".side").count() == 1
    for control in (".side", ".top", ".filters", ".button", "form"):
        assert not any([await one.is_visible() for one in await page.locator(control).all()])
    ink = await page.locator("main h1").evaluate("one => getComputedStyle(one).color")
    assert max(map(int, re.findall(r"\d+", ink)[:3])) < DARK, ink
