"""Attacks on every route of the console, by a list made from the application's own routes."""

import csv
import io
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from urllib.parse import urlencode

import httpx2
import pytest
import pytest_asyncio

from gateway.billing.budgets import WINDOWS
from gateway.domain import AdminScope, Scope
from gateway.identity import sessions
from gateway.identity.viewers import Role, Viewer
from tests.console_helpers import by_key, everyone, person
from tests.console_routes import (
    CANARY,
    KEY,
    OPEN,
    Owned,
    PageRoute,
    every_route,
    may,
    needs,
    tenant_with_everything,
)
from tests.harness import PostgresServer, Served, make_settings, secret_of, served_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
HTML = {"Accept": "text/html"}
UNKNOWN = "01a22bc1-c765-7ed4-8e00-316d98242e42"
LEAVES = {"POST /console/sign-out", "POST /console/portal/leave", "GET /console/events"}
"""Routes that end the session or the visit of the viewer who tries them, or do not end."""
FORMULA = re.compile(r"[=+@\t\r]|-(?!\d)")
FILES = {"/console/usage", "/console/costs", "/console/audit"}
"""Pages that are files too, with names in cells of their own."""
MOVING = re.compile(r"console_(session|failure)|request_log.*|api_key_use|.*heartbeat.*")
"""Tables in which looking leaves a trace."""
FILTERS = {
    "key": "key_id",
    "user": "user_id",
    "tenant": "tenant_id",
    "id": "request_id",
    "image": "image_id",
    "same": "image_id",
    "after": "image_id",
    "model": "call_id",
}
"""Fields of addresses, each with the kind of id that it takes."""
LAST = ("status", "revoke", "end", "remove", "delete")
"""Ends of paths after which less is left to change, in this order."""
CROSS_SITE: Sequence[Mapping[str, str]] = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "", "Origin": "null"},
    {"Sec-Fetch-Site": ""},
)


@dataclass
class Town:
    """A served gateway with a victim, its neighbour, and browsers of everyone."""

    served: Served
    routes: list[PageRoute]
    victim: Owned
    attacker: Owned
    people: dict[str, httpx2.AsyncClient] = field(default_factory=dict)
    viewers: dict[str, Viewer] = field(default_factory=dict)

    async def add(self, name: str, client: httpx2.AsyncClient) -> None:
        """Add someone's browser, each of whose answers must not be shown in a frame."""
        client.event_hooks["response"].append(_expect_headers)
        self.people[name] = client
        found = await sessions.find(self.served.gateway.database, client.cookies["ig_session"])
        self.viewers[name] = found
        if found.tenant_id is not None:
            # The browser remembers the mode.
            await client.get("/console/connect?mode=test")

    async def rows(self, tenant_id: object = None) -> dict[str, str]:
        """A digest of each table; of the rows of one tenant, if it is given."""
        tables = await self.served.owner_sql(
            "SELECT c.relname AS name, EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid"
            " AND a.attname = 'tenant_id') AS is_owned FROM pg_class c WHERE c.relkind = 'r'"
            " AND c.relnamespace = 'public'::regnamespace"
        )
        parts = [
            f"SELECT '{one.name}', md5(coalesce(string_agg(t::text, '' ORDER BY t::text), ''))"  # noqa: S608
            f" FROM {one.name} t" + (f" WHERE tenant_id = '{tenant_id}'" if tenant_id else "")
            for one in tables
            if not MOVING.fullmatch(one.name) and (one.is_owned or tenant_id is None)
        ]
        found = await self.served.owner_sql(" UNION ALL ".join(parts))
        return dict(map(tuple, found))

    def form(self) -> dict[str, str]:
        """A form with every field that a page knows, and the victim's ids wherever one fits."""
        ids = self.victim.ids
        return {
            "name": "stolen",
            "status": "disabled",
            "grace": "3600",
            "confirm": "delete",
            "window": WINDOWS[0],
            "limit_usd": "9",
            "kind": "images",
            "value": "1",
            "livemode": "test",
            "mode": "test",
            "role": "tenant-member",
            "owner": "tenant",
            "email": "e@vil.example",
            "url": "https://hooks.example.com/evil",
            "description": "stolen",
            "reason": "stolen",
            "verdict": "void",
            "secret": "sk-a",
            "enforcement": "hard",
            "alert_percents": "",
            "time_zone": "UTC",
            "key": ids["key_id"],
            "user": ids["user_id"],
            "tenant": ids["tenant_id"],
            "owner_name": ids["user_id"],
            ids["image_id"]: "on",
            "confirmed": "yes",
            "hosted": ids["image_id"],
            "image": ids["image_id"],
            "operation": "edit",
            "model": "gpt-image-2",
            "prompt": "stolen",
            "do": "make",
            "until": "2027-01-01",
            "image_retention_seconds": "1",
            "image_retention_seconds_unit": "days",
            **dict.fromkeys((f"scope.{scope}" for scope in Scope), "on"),
            **dict.fromkeys((f"scope-{scope}" for scope in (*Scope, *AdminScope)), "on"),
        }


async def _expect_headers(answer: httpx2.Response) -> None:
    policy = answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy, answer.url
    assert "unsafe" not in policy, answer.url
    assert answer.headers["x-frame-options"] == "DENY", answer.url
    assert answer.headers["x-content-type-options"] == "nosniff", answer.url
    assert answer.headers["cache-control"] == "no-store", answer.url
    assert answer.status_code < 500, answer.url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Town]:
    """One gateway for the file."""
    url = await postgres.create()
    settings = make_settings(
        url, tmp_path_factory.mktemp("town"), console_sign_ins_per_minute=10_000
    )
    async with served_gateway(settings) as served, AsyncExitStack() as stack:
        victim = await tenant_with_everything(served, "victim")
        attacker = await tenant_with_everything(served, "attacker", "plain")
        made = Town(served, every_route(served.app), victim, attacker)
        people = await everyone(
            stack,
            served,
            victim.key,
            tenant_id=victim.tenant_id,
            user_id=victim.key.user_id,
        )
        for who, client in people.items():
            await made.add(who, client)
        yield made
    await postgres.drop(url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def neighbours(town: Town) -> AsyncIterator[dict[str, httpx2.AsyncClient]]:
    """Browsers of all roles of another tenant, and of its key with every scope."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        found = {"key": await enter(by_key(town.served, town.attacker.key))}
        for role in (Role.TENANT_ADMIN, Role.TENANT_MEMBER, Role.TENANT_BILLING_VIEWER):
            found[role] = await enter(
                person(
                    town.served,
                    role,
                    tenant_id=town.attacker.tenant_id,
                    user_id=town.attacker.key.user_id,
                )
            )
        for client in found.values():
            client.event_hooks["response"].append(_expect_headers)
        yield found


async def send(
    client: httpx2.AsyncClient,
    route: PageRoute,
    ids: Mapping[str, str],
    form: Mapping[str, str] | None = None,
    **headers: str,
) -> httpx2.Response:
    """Send a request as a page does; the playground's own forms are multipart."""
    path = route.fill(ids) + "?mode=test" * ("/portal/leave" not in route.path)
    if route.is_safe:
        return await client.request(route.method, route.fill(ids), headers={**HTML, **headers})
    if route.path in {"/console/playground", "/console/playground/stream"}:
        parts = [(name, (None, text)) for name, text in (form or {"prompt": ""}).items()]
        return await client.request(route.method, path, files=parts, headers={**HTML, **headers})
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    content = urlencode(form or {})
    return await client.request(
        route.method, path, content=content, headers={**HTML, **kind, **headers}
    )


async def test_every_route_says_whom_it_is_for(town: Town) -> None:
    known = needs()
    listed = {str(route) for route in town.routes}
    assert listed == set(known), "name new routes in NEEDS of tests/console_routes.py"
    for route in town.routes:
        route.fill(town.victim.ids)


async def test_each_role_is_let_into_exactly_what_the_table_of_permissions_says(
    town: Town,
) -> None:
    unknown = dict.fromkeys(town.victim.ids, UNKNOWN) | {"budget_id": "999", "limit_id": "999"}
    before, faults, known = await town.rows(), [], needs()
    for route in town.routes:
        for name, client in town.people.items():
            if str(route) in LEAVES or known[str(route)] == OPEN:
                continue
            need = known[str(route)]
            is_allowed = may(town.viewers[name], need)
            # Who may change something names what does not exist.
            ids = town.victim.ids if route.is_safe or not is_allowed else unknown
            answer = await send(client, route, ids, None if is_allowed else town.form())
            # For people without a key there is no page of their key.
            if (answer.status_code not in {403, 404 if need == KEY else 403}) != is_allowed:
                faults.append(f"{route} by {name}: {answer.status_code}")
            elif is_allowed and route.is_safe and answer.status_code not in {200, 303}:
                faults.append(f"{route} by {name}: {answer.status_code} {answer.text[:300]}")
    assert not faults, "\n".join(faults)
    assert await town.rows() == before


async def test_forms_of_other_sites_are_refused(town: Town) -> None:
    before = await town.rows()
    for route in town.routes:
        if not route.is_safe:
            for headers in CROSS_SITE:
                for name in (Role.OPERATOR_ADMIN, Role.TENANT_ADMIN):
                    client = town.people[name]
                    answer = await send(client, route, town.victim.ids, town.form(), **headers)
                    assert answer.status_code == 403, (str(route), headers)
    assert await town.rows() == before


async def test_without_a_session_every_page_leads_to_the_sign_in(town: Town) -> None:
    before, known = await town.rows(), needs()
    own = {"Sec-Fetch-Site": "same-origin"}
    for cookie in ("", "A" * 43, "x' OR true --"):
        async with town.served.http(cookies={"ig_session": cookie} if cookie else {}) as anyone:
            anyone.event_hooks["response"].append(_expect_headers)
            for route in town.routes:
                if known[str(route)] != OPEN:
                    answer = await send(anyone, route, town.victim.ids, town.form(), **own)
                    place = answer.headers["location"]
                    assert answer.status_code == 303, str(route)
                    assert place.startswith("/console/login?next=/console"), str(route)
    assert await town.rows() == before


async def test_an_api_key_opens_no_page_and_a_cookie_no_route_of_the_api(town: Town) -> None:
    key = secret_of(town.victim.key)
    async with town.served.http(key, cookies={}) as program:
        answer = await program.get("/console/usage", headers=HTML)
        assert answer.headers["location"].startswith("/console/login")
    admin = town.people[Role.OPERATOR_ADMIN]
    del admin.event_hooks["response"][:]
    for path in ("/v1/usage", "/admin/v1/tenants"):
        assert (await admin.get(path)).status_code == 401
    admin.event_hooks["response"].append(_expect_headers)


async def test_another_tenants_ids_in_paths_find_and_change_nothing(
    town: Town, neighbours: dict[str, httpx2.AsyncClient]
) -> None:
    routes = [route for route in town.routes if route.names_an_object]
    assert len(routes) > 40
    before = await town.rows()
    for route in routes:
        for name, client in neighbours.items():
            answer = await send(client, route, town.victim.ids, town.form())
            assert answer.status_code in {403, 404}, (str(route), name, answer.status_code)
            assert CANARY not in answer.text, (str(route), name)
    assert await town.rows() == before


async def test_another_tenants_ids_in_filters_show_nothing(
    town: Town, neighbours: dict[str, httpx2.AsyncClient]
) -> None:
    for route in town.routes:
        if route.is_safe and not route.parameters and str(route) not in LEAVES:
            for name, kind in FILTERS.items():
                address = f"{route.path}?mode=test&{name}={town.victim.ids[kind]}"
                answer = await neighbours[Role.TENANT_ADMIN].get(address, headers=HTML)
                assert CANARY not in answer.text, address


async def test_another_tenants_ids_in_forms_change_nothing_of_it(
    town: Town, neighbours: dict[str, httpx2.AsyncClient]
) -> None:
    before = await town.rows(town.victim.tenant_id)
    assert len(before) > 20
    for route in town.routes:
        if not (route.is_safe or route.names_an_object or str(route) in LEAVES):
            for client in neighbours.values():
                await send(client, route, town.victim.ids, town.form())
    assert await town.rows(town.victim.tenant_id) == before


async def test_no_cell_of_a_file_is_a_formula(town: Town) -> None:
    seen = set()
    paths = [one.path for one in town.routes if one.is_safe and not one.parameters]
    for path in set(paths) - {"/console/events"}:
        for name in (Role.OPERATOR_ADMIN, Role.TENANT_ADMIN):
            for more in ("", "&mode=test&group=key", "&mode=test&group=user"):
                address = f"{path}?format=csv{more}"
                answer = await town.people[name].get(address)
                if answer.headers["content-type"].startswith("text/csv"):
                    cells = [cell for row in csv.reader(io.StringIO(answer.text)) for cell in row]
                    assert not [cell for cell in cells if FORMULA.match(cell)], address
                    if any(cell.startswith("'=1+1") for cell in cells):
                        seen.add(path)
    assert seen == FILES


async def test_a_form_that_is_sent_again_changes_nothing_more(
    town: Town, neighbours: dict[str, httpx2.AsyncClient]
) -> None:
    key = await town.served.key(tenant_id=town.attacker.tenant_id, name="again")
    ids = {**town.attacker.ids, "keys object_id": str(key.id)}
    admin = neighbours[Role.TENANT_ADMIN]
    forms: Sequence[tuple[httpx2.AsyncClient, str, dict[str, str], int]] = (
        (admin, "POST /console/users", {"name": "again"}, 409),
        (admin, "POST /console/keys/{object_id}/roll", {"grace": "0"}, 404),
        (admin, "POST /console/people/invitations/{invitation_id}/revoke", {}, 404),
        (town.people[Role.OPERATOR_ADMIN], "POST /console/tenants", {"name": "again"}, 409),
    )
    routes = {str(route): route for route in town.routes}
    for client, name, form, expected in forms:
        first = await send(client, routes[name], ids, form)
        assert first.status_code in {200, 303}, (name, first.text)
        before = await town.rows()
        again = await send(client, routes[name], ids, form)
        assert again.status_code == expected, (name, again.status_code)
        assert await town.rows() == before, name


async def test_the_tenants_own_administrator_can_do_what_the_attacks_tried(town: Town) -> None:
    """Last, because it changes the victim: the ids and the form of the attacks were good."""
    admin = town.people[Role.TENANT_ADMIN]
    routes = [route for route in town.routes if route.names_an_object]
    own = [route for route in routes if may(town.viewers[Role.TENANT_ADMIN], needs()[str(route)])]
    ends = {end: at for at, end in enumerate(LAST)}
    done = {}
    for route in sorted(own, key=lambda one: ends.get(one.path.rpartition("/")[2], -1)):
        if route.path != "/console/sessions/{session_id}/end":  # of the person alone
            answer = await send(admin, route, town.victim.ids, town.form())
            done[str(route)] = answer.status_code
    assert len(done) > 20
    assert {route: status for route, status in done.items() if status in {403, 404}} == {}
