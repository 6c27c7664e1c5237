"""A tenant's self-service pages: who sees which, what they say, and bad addresses."""

import csv
import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import httpx2
import pytest
import pytest_asyncio
from fastapi.routing import iter_route_contexts

from gateway.console import connection_snippets
from gateway.console.router import router as pages
from gateway.db.engine import TenantSession
from gateway.domain import Scope
from gateway.identity.viewers import Role
from gateway.tenancy.api_keys import IssuedKey
from gateway.webhooks import endpoints
from tests.console_helpers import operator, person
from tests.harness import GPT2, PostgresServer, Served, make_settings, served_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
HTML = {"Accept": "text/html"}
MCP_CLIENTS = (Path(__file__).resolve().parents[2] / "docs/mcp-clients.md").read_text()
EVIL = '=1+1"><script>alert(1)</script>'
PAGES = (
    "/console/usage",
    "/console/usage?format=csv",
    "/console/usage/calls",
    "/console/portal/requests",
    "/console/portal/budgets",
    "/console/connect",
    "/console/credentials",
    "/console/keys",
    "/console/keys/new",
    "/console/keys/{key}",
    "/console/users",
    "/console/users/{user}",
    "/console/portal/webhooks",
    "/console/portal/webhooks/new",
    "/console/portal/webhooks/{hook}",
    "/console/portal/audit",
)
"""The pages of an administrator; who else may open each is known to test_every_route."""

MANY_DAYS = """
    INSERT INTO usage_day (tenant_id, livemode, day, zone, requested_model, served_model, provider,
        operation, credential, calls, requests, images, text_input_tokens,
        image_input_tokens, text_output_tokens, image_output_tokens, amount_nano)
    SELECT :tenant, true, DATE '2026-03-01' + d, 'UTC', 'm' || m, 'm' || m, 'openai',
        'generation', 'house', 1, 1, 1, 0, 0, 0, 0, 1000000
    FROM generate_series(0, 29) d, generate_series(1, 360) m RETURNING 1
"""
"""A month of 10 800 days of models, at a tenth of a cent each."""
MANY_USERS = """
    INSERT INTO usage_owner_day (tenant_id, livemode, day, zone, user_id, requested_model,
        served_model, provider, operation, credential, calls, requests, images,
        text_input_tokens, image_input_tokens, text_output_tokens, image_output_tokens, amount_nano)
    SELECT :tenant, true, DATE '2026-03-02', 'UTC', gen_random_uuid(), 'm1', 'm1', 'openai',
        'generation', 'house', 1, 1, 1, 0, 0, 0, 0, 1000000
    FROM generate_series(1, 10001) RETURNING 1
"""


@dataclass
class Shop:
    """A tenant with a user, keys, a webhook and calls in test mode, and its viewers."""

    served: Served
    key: IssuedKey
    user_id: UUID
    hook_id: UUID
    other: dict[str, str]
    viewers: dict[str, httpx2.AsyncClient]

    @property
    def own(self) -> dict[str, str]:
        """The ids of the tenant's own objects."""
        return {"key": str(self.key.id), "user": str(self.user_id), "hook": str(self.hook_id)}


async def make_hook(served: Served, tenant_id: UUID) -> UUID:
    async with served.gateway.database.operator() as session:
        made = await endpoints.create(
            TenantSession(session),
            tenant_id,
            sealing=served.gateway.core.webhook_sealing,
            url="https://hooks.example.com/x?y=1",
            description=EVIL,
            allow_private=False,
            max_endpoints=10,
        )
    return made.endpoint.id


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shop]:
    """One served gateway for the file; its tests change nothing."""
    url = await postgres.create()
    settings = make_settings(url, tmp_path_factory.mktemp("shop"))
    async with served_gateway(settings) as served, AsyncExitStack() as stack:
        key = await served.key(livemode=False, user="Mei", name=EVIL)
        live = await served.key(name="live")
        reader = await served.key(livemode=False, scopes=[Scope.USAGE_READ])
        assert key.user_id is not None
        async with served.http(key) as http:
            for quality, prompt in (
                ("low", "a cat"),
                ("medium", "a dog"),
                ("low", "[sandbox:moderation]"),
            ):
                body = {"model": GPT2, "prompt": prompt, "quality": quality}
                await http.post("/v1/images/generations", json=body)
            await http.post("/v1/images/generations", json={"model": "none", "prompt": "x"})
        await served.gateway.request_log.flush()
        other = await served.tenant("other")
        theirs = await served.key(tenant_id=other, user="Bob")
        ids = {
            "key": str(theirs.id),
            "user": str(theirs.user_id),
            "hook": str(await make_hook(served, other)),
        }
        enter = stack.enter_async_context
        viewers = {
            "a": await enter(person(served, Role.TENANT_ADMIN)),
            "b": await enter(person(served, Role.TENANT_BILLING_VIEWER)),
            "m": await enter(person(served, Role.TENANT_MEMBER, user_id=key.user_id)),
            "k": await enter(person(served, Role.TENANT_MEMBER, key=live)),
            "r": await enter(person(served, Role.TENANT_BILLING_VIEWER, key=reader)),
            "o": await enter(operator(served)),
        }
        for name in "abm":
            await viewers[name].get("/console/usage?mode=test")
        hook = await make_hook(served, served.tenant_id)
        yield Shop(served, key, key.user_id, hook, ids, viewers)
    await postgres.drop(url)


def exact(text: str) -> list[Decimal]:
    """The amounts of a page, with all of their digits."""
    return [Decimal(one.replace(",", "")) for one in re.findall(r'title="\$([\d.,]+) USD"', text)]


async def test_another_tenants_ids_are_not_found_in_filters_and_fields(shop: Shop) -> None:
    admin = shop.viewers["a"]
    for name in ("key", "user"):
        for path in ("/console/usage", "/console/usage/calls", "/console/portal/requests"):
            answer = await admin.get(f"{path}?{name}={shop.other[name]}", headers=HTML)
            assert answer.status_code == 404, (path, name)
        data = {
            "window": "month",
            "limit_usd": "1",
            name: shop.other[name],
            "kind": "images",
            "value": "1",
        }
        for path in ("/console/portal/budgets", "/console/portal/budgets/limits"):
            assert (await admin.post(path, data=data)).status_code == 404, (path, name)


@pytest.mark.parametrize(
    "path",
    [
        "/console/usage?group=colour",
        "/console/usage?group=tenant",
        "/console/usage?by=year",
        "/console/usage?by=hour&period=90d",
        "/console/usage?start=2026-02-30",
        "/console/usage?zone=Mars/Olympus",
        "/console/usage?format=xls",
        "/console/usage?mode=none",
        "/console/usage?colour=red",
        "/console/usage/calls?status=paid",
        "/console/usage/calls?after=1",
        "/console/portal/requests?start=yesterday",
        "/console/portal/requests?show=some",
        "/console/portal/requests?after=1",
        "/console/portal/requests?model=%00",
        "/console/portal/requests/nothing",
        "/console/portal/requests/" + "9" * 200,
        "/console/keys/1",
        "/console/keys?after=1",
        "/console/users/..%2f..",
        "/console/portal/webhooks/1",
        "/console/portal/audit?action=none",
        "/console/portal/audit?start=9999-99-99",
        "/console/portal/audit?after=01a22bc1-c765-7ed4-8e00-316d98242e42",
    ],
)
async def test_a_bad_address_is_a_page_that_says_so(shop: Shop, path: str) -> None:
    answer = await shop.viewers["a"].get(path, headers=HTML)
    assert answer.status_code in {400, 404}
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["cache-control"] == "no-store"


async def test_usage_its_calls_and_its_file_have_the_sum_of_the_ledger(shop: Shop) -> None:
    total = Decimal(await shop.served.ledger_total()) / 10**9
    admin = shop.viewers["a"]
    assert total > 0
    for group in ("model", "key", "user", "size", "quality", "operation", "status"):
        page = await admin.get(f"/console/usage?group={group}&compare=no")
        file = await admin.get(f"/console/usage?group={group}&format=csv")
        rows = list(csv.DictReader(io.StringIO(file.text)))
        assert exact(page.text)[0] == total, group
        assert sum(Decimal(row["cost_usd"]) for row in rows) == total, group
        assert sum(int(row["failed_requests"]) for row in rows) == 1, group
    calls = await admin.get("/console/usage/calls?quality=low&status=charged")
    low = await admin.get("/console/usage/calls?status=charged")
    assert len(exact(calls.text)) == 1
    assert sum(exact(low.text)) == total


async def test_a_file_of_usage_holds_no_formula_of_a_name(shop: Shop) -> None:
    file = await shop.viewers["a"].get("/console/usage?group=key&format=csv")
    [row] = csv.DictReader(io.StringIO(file.text))
    assert row["key_name"] == f"'{EVIL}"
    assert file.headers["content-disposition"] == 'attachment; filename="usage.csv"'


async def test_a_member_sees_their_own_calls_alone(shop: Shop) -> None:
    async with person(shop.served, Role.TENANT_MEMBER, user_id=UUID(shop.own["user"])) as own:
        mine = await own.get("/console/usage/calls?mode=test")
    assert len(exact(mine.text)) == 3
    bob = await shop.served.key(livemode=False, user="Bob")
    async with person(shop.served, Role.TENANT_MEMBER, user_id=bob.user_id) as his:
        for path in ("/console/usage/calls", "/console/portal/requests", "/console/usage"):
            page = await his.get(f"{path}?mode=test")
            assert exact(page.text) in ([], [Decimal(0)] * len(exact(page.text))), path
        generation = (await shop.served.owner_sql("SELECT id FROM reservation LIMIT 1"))[0].id
        assert (await his.get(f"/console/portal/requests/{generation}")).status_code == 404


async def test_failed_requests_say_what_to_do(shop: Shop) -> None:
    admin = shop.viewers["a"]
    failed = await admin.get("/console/portal/requests?show=failed")
    assert "moderation_blocked 400" in failed.text
    assert "model_not_found 404" in failed.text
    assert ">200<" not in failed.text
    succeeded = await admin.get("/console/portal/requests?show=succeeded")
    assert "moderation_blocked" not in succeeded.text.partition("<table")[2]
    rows = failed.text.partition("<tbody>")[2].split("</tr>")
    [row] = [one for one in rows if "moderation_blocked" in one]
    found = re.findall(r"/console/portal/requests/req_\w+", row)[0]
    one = await admin.get(found)
    assert "Change the prompt. The same one will be refused again." in one.text
    assert "Released" in one.text
    by_id = await admin.get(f"/console/portal/requests?id={found.rpartition('/')[2]}")
    assert by_id.headers["location"] == found


async def test_the_holder_of_a_key_sees_what_it_may_and_what_it_used(shop: Shop) -> None:
    async with person(shop.served, Role.TENANT_MEMBER, key=shop.key) as holder:
        page = await holder.get("/console/this-key")
        live = await holder.get("/console/usage?mode=live", headers=HTML)
    assert exact(page.text)[0] == Decimal(await shop.served.ledger_total()) / 10**9
    assert "test: the sandbox" in page.text
    assert ">Live</a>" not in page.text
    assert live.status_code == 403


async def test_no_two_pages_have_one_address() -> None:
    routes = [
        (method, re.sub(r"{\w+}", "{}", context.path or ""))
        for context in iter_route_contexts(pages.routes)
        for method in context.methods or ()
    ]
    assert len(routes) > len(PAGES)
    assert sorted(routes) == sorted(set(routes))


async def test_the_navigation_names_only_pages_that_open(shop: Shop) -> None:
    for name in "abmkr":
        viewer = shop.viewers[name]
        page = await viewer.get("/console/connect")
        links = re.findall(r'<li><a href="(/console[^"]*)"', page.text)
        assert "/console/usage" in links
        for path in set(links) - {"/console"}:
            assert (await viewer.get(path)).status_code == 200, (name, path)


async def test_configurations_to_paste_are_those_of_the_documentation() -> None:
    docs = MCP_CLIENTS
    blocks = re.findall(r"```json\n(.*?)```", docs, re.DOTALL)
    known = [json.loads(block) for block in blocks]
    for one in connection_snippets.mcp_clients("https://images.example.com"):
        if one.id == "codex":
            assert one.text in docs
        else:
            assert json.loads(one.text) in known, one.id


async def test_an_operator_in_the_portal_sees_the_tenants_pages_and_is_named_to_no_one(
    shop: Shop,
) -> None:
    async with operator(shop.served) as visitor:
        await visitor.post(f"/console/tenants/{shop.served.tenant_id}/portal")
        for path in PAGES:
            if path != "/console/this-key":
                answer = await visitor.get(path.format(**shop.own), headers=HTML)
                assert answer.status_code == 200, path
        await visitor.post("/console/portal/leave")
        form = {
            "email": "a@b.example",
            "role": "tenant-member",
            "tenant": str(shop.served.tenant_id),
        }
        await visitor.post("/console/people/invitations", data=form)
    audit = await shop.viewers["a"].get("/console/portal/audit")
    assert "console.portal_opened" in audit.text
    assert "console.invitation_made" in audit.text
    people = await shop.viewers["a"].get("/console/people")
    assert "a@b.example" in people.text
    assert "(sign-in link)" not in audit.text + people.text
    assert "webhook.created" in audit.text
    assert "hooks.example.com" in audit.text


async def test_many_groups_are_summed_up_whole_or_refused(shop: Shop) -> None:
    tenant = await shop.served.tenant("vast")
    await shop.served.owner_sql(MANY_DAYS, tenant=tenant)
    await shop.served.owner_sql(MANY_USERS, tenant=tenant)
    period = "start=2026-03-01&end=2026-03-30&mode=live"
    async with person(shop.served, Role.TENANT_ADMIN, tenant_id=tenant) as admin:
        by_model = await admin.get(f"/console/usage?group=model&{period}")
        by_user = await admin.get(f"/console/usage?group=user&{period}")
    costs = f"/console/costs?tenant=vast&{period}"
    whole = await shop.viewers["o"].get(f"{costs}&group=model")
    refused = await shop.viewers["o"].get(f"{costs}&group=user")
    for page in (by_model, whole):
        assert exact(page.text)[0] == Decimal("10.8")
        assert exact(page.text).count(Decimal("0.03")) >= 1
    for page in (by_user, refused):
        assert page.status_code == 400
        assert "This report is too large" in page.text


async def test_a_billing_viewer_with_a_user_sees_all_budgets_as_on_their_home(shop: Shop) -> None:
    await shop.served.budget("3", livemode=False, window="day", api_key_id=shop.key.id)
    viewer = person(shop.served, Role.TENANT_BILLING_VIEWER, user_id=shop.user_id)
    async with viewer as billing:
        home = await billing.get("/console?mode=test")
        page = await billing.get("/console/portal/budgets?mode=test")
    assert "$3.00" in home.text
    assert "$3.00" in page.text
