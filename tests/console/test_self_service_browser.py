"""A tenant's self-service in a real browser: forms by click."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway.domain import Scope
from gateway.identity.viewers import Role
from tests.console_browser import CHROMIUM, NO_BROWSER, Visitor, signed_in
from tests.console_helpers import person
from tests.harness import GPT2, PostgresServer, Served, make_settings, served_gateway

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER),
]
IMAGES = "/v1/images/generations"
LOW = {"model": GPT2, "prompt": "a red circle", "quality": "low", "size": "1024x1024"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """One gateway for the file, with a user, a budget, a webhook's worth of calls and a failure."""
    url = await postgres.create()
    async with served_gateway(make_settings(url, tmp_path_factory.mktemp("shop"))) as served:
        await served.budget("1", livemode=False)
        key = await served.key(livemode=False, name="website", user="Mei", scopes=[*Scope])
        await served.budget("0.5", livemode=False, user_id=key.user_id)
        async with served.http(key) as http:
            for body in (LOW, LOW | {"prompt": "[sandbox:moderation]"}, LOW | {"model": "none"}):
                await http.post(IMAGES, json=body)
        yield served
    await postgres.drop(url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def visitor(shop: Served) -> AsyncIterator[Visitor]:
    """An administrator with a browser; at the end no page may have had a fault."""
    async with person(shop, Role.TENANT_ADMIN) as client:
        cookies: list[dict[str, object]] = [
            {"name": name, "value": value, "url": shop.base_url}
            for name, value in client.cookies.items()
        ]
        async with signed_in(shop, cookies) as someone:
            yield someone


async def status_of(served: Served, secret: str) -> int:
    async with served.http(secret) as http:
        return (await http.post(IMAGES, json=LOW)).status_code


async def test_a_key_is_created_used_and_limited_and_its_requests_are_found(
    shop: Served, visitor: Visitor
) -> None:
    page = await visitor.visit("/console/keys/new?mode=test")
    await page.get_by_label("Name", exact=True).fill("app")
    await page.get_by_role("button", name="Create key").click()
    secret = await page.locator("#secret").inner_text()
    assert await page.get_by_role("button", name="Copy").count() == 2
    assert secret in await page.locator("#curl").inner_text()
    assert await status_of(shop, secret) == 200
    await shop.gateway.request_log.flush()
    await page.get_by_role("link", name="Requests", exact=True).first.click()
    await page.locator("tbody tr", has_text="app").get_by_role("link").first.click()
    assert "charged" in await page.locator("#ledger").inner_text()
    await page.get_by_role("link", name="Budgets and limits").click()
    form = page.locator("form", has=page.get_by_role("button", name="Set budget"))
    await form.get_by_label("API key").fill("app")
    await form.get_by_label("Limit in US dollars").fill("0.001")
    await form.get_by_role("button", name="Set budget").click()
    assert await status_of(shop, secret) == 402
    line = page.locator("li", has_text="Key app")
    await line.get_by_text("Change", exact=True).click()
    await line.get_by_label("New limit in US dollars").fill("0.9")
    await line.get_by_role("button", name="Set", exact=True).click()
    assert await page.get_by_role("status").get_by_text("The budget was set").is_visible()
    assert await status_of(shop, secret) == 200
    await page.get_by_role("link", name="API keys").click()
    await page.get_by_role("link", name="app", exact=True).click()
    await page.get_by_role("button", name="Revoke the key").click()
    await page.get_by_role("button", name="Revoke", exact=True).click()
    await page.wait_for_url("**/console/keys?done=revoked")
    assert await status_of(shop, secret) == 401
    await page.context.close()
    visitor.open.remove(page.context)
