"""Forms that make a secret: each is used once, and its secret shown once, without scripts too."""

import asyncio
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from html import unescape

import httpx2
import pytest

from gateway.identity import sessions
from gateway.identity.viewers import Role
from tests.console_browser import CHROMIUM, NO_BROWSER, signed_in
from tests.console_helpers import operator, person
from tests.console_routes import tenant_with_everything
from tests.harness import Served

SHOWN = re.compile(r'<code id="(?:new-)?(?:secret|invitation-link)">([^<]+)</code>')
WAS_SHOWN = "was shown already"


@dataclass(frozen=True)
class Maker:
    """A form that makes a secret: who sends it, on which page, to where, and what it counts."""

    by: str
    page: str
    action: str
    form: Mapping[str, str]
    table: str


HOOK = {"url": "https://hooks.example.com/x", "description": "new"}
MAKERS = {
    "a tenant's key": Maker(
        "tenant",
        "/console/keys/new?mode=test",
        "/console/keys/new",
        {"name": "new", "livemode": "test", "scope.images:read": "on"},
        "api_key",
    ),
    "a tenant's rolled key": Maker(
        "tenant",
        "/console/keys/{key_id}",
        "/console/keys/{key_id}/roll",
        {"grace": "3600"},
        "api_key",
    ),
    "a tenant's webhook": Maker(
        "tenant",
        "/console/portal/webhooks/new",
        "/console/portal/webhooks/new",
        {**HOOK, "livemode": "both", "event.budget.exceeded": "on"},
        "webhook_endpoint",
    ),
    "a tenant's rolled webhook": Maker(
        "tenant",
        "/console/portal/webhooks/{webhook_id}",
        "/console/portal/webhooks/{webhook_id}/roll",
        {"grace": "3600"},
        "webhook_secret",
    ),
    "a tenant's invitation": Maker(
        "tenant",
        "/console/people",
        "/console/people/invitations",
        {"email": "new@b.example", "role": "tenant-member"},
        "console_invitation",
    ),
    "an operator's key of a tenant": Maker(
        "operator",
        "/console/tenants/{tenant_id}/keys",
        "/console/tenants/{tenant_id}/keys",
        {"name": "new", "mode": "test", "scope-images:read": "on"},
        "api_key",
    ),
    "an operator's rolled key of a tenant": Maker(
        "operator",
        "/console/tenants/{tenant_id}/keys",
        "/console/tenants/{tenant_id}/keys/{key_id}/roll",
        {"grace": "3600"},
        "api_key",
    ),
    "an admin key": Maker(
        "operator",
        "/console/admin-keys",
        "/console/admin-keys",
        {"name": "new", "scope-metrics": "on"},
        "operator_key",
    ),
    "a rolled admin key": Maker(
        "operator",
        "/console/admin-keys",
        "/console/admin-keys/{admin_key_id}/roll",
        {"grace": "3600"},
        "operator_key",
    ),
    "an operator's webhook": Maker(
        "operator",
        "/console/webhooks",
        "/console/webhooks",
        {**HOOK, "mode": "both", "event-budget.exceeded": "on"},
        "webhook_endpoint",
    ),
    "an operator's rolled webhook": Maker(
        "operator",
        "/console/webhooks/{webhook_id}",
        "/console/webhooks/{webhook_id}/roll",
        {"grace": "3600"},
        "webhook_secret",
    ),
    "an operator's invitation": Maker(
        "operator",
        "/console/people",
        "/console/people/invitations",
        {"email": "new@b.example", "role": "operator-viewer"},
        "console_invitation",
    ),
}


async def address_of(client: httpx2.AsyncClient, page: str, action: str) -> str:
    """The address to which a page sends a form, with the marks that it carries."""
    text = (await client.get(page)).text
    [found] = re.findall(rf'method="post" action="({re.escape(action)}\?[^"]+)"', text)
    return unescape(str(found))


async def count(served: Served, table: str) -> int:
    [row] = await served.owner_sql(f"SELECT count(*) AS n FROM {table}")  # noqa: S608 - from above
    return int(row.n)


async def test_a_form_makes_one_secret_however_often_it_is_sent_and_shows_it_once(
    served: Served,
) -> None:
    owned = await tenant_with_everything(served, "maker", "plain")
    [admin_key] = await served.owner_sql("SELECT id FROM operator_key ORDER BY id LIMIT 1")
    ids = {**owned.ids, "admin_key_id": str(admin_key.id)}
    async with AsyncExitStack() as stack:
        by = {
            "tenant": await stack.enter_async_context(
                person(served, Role.TENANT_ADMIN, tenant_id=owned.tenant_id)
            ),
            "operator": await stack.enter_async_context(operator(served)),
        }
        for name, maker in MAKERS.items():
            client = by[maker.by]
            page, action = (text.format_map(ids) for text in (maker.page, maker.action))
            address = await address_of(client, page, action)
            before = await count(served, maker.table)
            first, again = await asyncio.gather(
                client.post(address, data=maker.form), client.post(address, data=maker.form)
            )
            assert (first.status_code, again.status_code) == (303, 303), (name, first.text)
            assert first.headers["location"] == again.headers["location"], name
            assert await count(served, maker.table) == before + 1, name
            await shows_once(client, first.headers["location"], name)
            # A reload, and a form that the browser kept, lead to the same page.
            late = await client.post(address, data=maker.form)
            assert late.headers["location"] == first.headers["location"], name
            assert await count(served, maker.table) == before + 1, name


async def shows_once(client: httpx2.AsyncClient, place: str, name: str) -> None:
    """Expect the secret at its first sight, and a word about it at the second."""
    shown, after = await client.get(place), await client.get(place)
    assert shown.headers["cache-control"] == "no-store"
    [secret] = SHOWN.findall(shown.text)
    assert secret not in after.text, name
    assert (WAS_SHOWN in shown.text, WAS_SHOWN in after.text) == (False, True), name


async def test_changed_content_and_a_newly_opened_form_make_another_secret(served: Served) -> None:
    form = {"name": "one", "livemode": "test", "scope.images:read": "on"}
    async with person(served, Role.TENANT_ADMIN) as admin:
        first = await address_of(admin, "/console/keys/new?mode=test", "/console/keys/new")
        second = await address_of(admin, "/console/keys/new?mode=test", "/console/keys/new")
        for address, data in ((first, form), (first, form | {"name": "two"}), (second, form)):
            assert (await admin.post(address, data=data)).status_code == 303
    rows = await served.owner_sql("SELECT name FROM api_key WHERE name IN ('one', 'two')")
    assert sorted(row.name for row in rows) == ["one", "one", "two"]


async def test_a_refused_form_can_be_sent_again(served: Served) -> None:
    form = {"name": "one", "livemode": "test", "user": "ada", "scope.images:read": "on"}
    async with person(served, Role.TENANT_ADMIN) as admin:
        address = await address_of(admin, "/console/keys/new?mode=test", "/console/keys/new")
        assert (await admin.post(address, data=form)).status_code == 404
        await admin.post("/console/users", data={"name": "ada"})
        assert (await admin.post(address, data=form)).status_code == 303


async def test_a_new_secret_is_for_the_session_that_made_it_and_sealed_until_then(
    served: Served,
) -> None:
    form = {"name": "one", "livemode": "test", "scope.images:read": "on"}
    async with (
        person(served, Role.TENANT_ADMIN) as admin,
        person(served, Role.TENANT_ADMIN) as colleague,
    ):
        made = await admin.post("/console/keys/new", data=form)
        place = made.headers["location"]
        assert WAS_SHOWN in (await colleague.get(place)).text
        [row] = await served.owner_sql("SELECT sealed FROM console_form")
        [secret] = SHOWN.findall((await admin.get(place)).text)
        assert secret.encode() not in bytes(row.sealed)
        [row] = await served.owner_sql("SELECT sealed FROM console_form")
        assert row.sealed is None


async def test_a_secret_that_was_not_fetched_is_forgotten(served: Served) -> None:
    form = {"name": "one", "livemode": "test", "scope.images:read": "on"}
    async with person(served, Role.TENANT_ADMIN) as admin:
        made = await admin.post("/console/keys/new", data=form)
        await served.owner_sql("UPDATE console_form SET shown_until = now() - interval '1 second'")
        assert WAS_SHOWN in (await admin.get(made.headers["location"])).text
    await sessions.sweep(served.gateway.database, days=30)
    [row] = await served.owner_sql("SELECT sealed FROM console_form")
    assert row.sealed is None
    await served.owner_sql("UPDATE console_form SET expires_at = now() - interval '1 second'")
    await sessions.sweep(served.gateway.database, days=30)
    assert await count(served, "console_form") == 0


@pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)
async def test_a_double_click_without_scripts_makes_one_key_and_shows_it(served: Served) -> None:
    async with signed_in(served) as visitor:
        path = f"/console/tenants/{served.tenant_id}/keys"
        page = await visitor.visit(path, scripts=False)
        form = page.locator("form", has=page.get_by_role("button", name="Create", exact=True))
        await form.get_by_label("Name", exact=True).fill("double")
        await form.get_by_role("button", name="Create", exact=True).dblclick()
        secret = await page.locator("#new-secret").inner_text()
        assert secret.startswith("igw_")
        await page.reload()
        assert secret not in await page.content()
    [row] = await served.owner_sql("SELECT count(*) AS n FROM api_key WHERE name = 'double'")
    assert row.n == 1
