"""Each amount of the console leads to the entries behind it, whose sum it is."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from html import unescape
from operator import add

import httpx2
import pytest
import pytest_asyncio

from gateway.console.cost_explorer import GROUPINGS
from gateway.console.pages.tenant_connect import THIS_KEY
from gateway.domain import Scope
from gateway.identity.viewers import Role
from tests.console.screenshots import details, pages
from tests.console_amounts import Amount, amounts_of
from tests.console_helpers import by_key, person, signed_in_as
from tests.console_portal import TENANT, make_images, portal_pages
from tests.console_seed import seed
from tests.harness import PostgresServer, make_settings, served_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
CALLS = 250
OF_MEMBERS = ("/console?", "/console/usage", "/console/portal/requests", "/console/portal/budgets")
OLDER = re.compile(r'href="([^"]+)" rel="next"')
NO_ENTRIES: Mapping[str, str] = {
    "of": "the limit of a budget",
    "from": "the usual limit of one that is raised",
    "": "what is left of a budget",
    "Per image": "an average",
    "Price": "a price",
    "Live": "the sum of the calls on the same page",
    "Limit": "the limit of a budget, on the page of a request",
}
"""Amounts that no entries add up to, by their names."""
REQUEST = re.compile(r"^/console/(portal/)?requests/[\w-]+$")
"""Pages that show the entries themselves."""
CALL_LISTS = ("/console/costs/calls", "/console/usage/calls")
HELD = ("status=open", "status=in_progress", "status=unknown")
OTHER_SUMS = {"/console/costs?period=7d": "the forecast, from the days that it is made of"}


@dataclass
class Books:
    """Browsers of those who look at amounts, with the pages that each may open."""

    viewers: dict[str, httpx2.AsyncClient] = field(default_factory=dict)
    paths: dict[str, list[str]] = field(default_factory=dict)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def books(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Books]:
    """One gateway for the file, with calls of four tenants; its tests change nothing."""
    url = await postgres.create()
    settings = make_settings(url, tmp_path_factory.mktemp("books"))
    async with served_gateway(settings) as served, AsyncExitStack() as stack:
        seeded = await seed(served, calls=CALLS)
        image = await make_images(served, seeded)
        tenant = seeded.tenants[TENANT]
        key = await served.key(
            livemode=False, tenant_id=tenant.id, scopes=[Scope.USAGE_READ, Scope.IMAGES_WRITE]
        )
        async with served.http(key) as http:
            await http.post("/v1/images/generations", json={"prompt": "a cat"})
        await served.gateway.request_log.flush()
        enter, found = stack.enter_async_context, Books()
        groups = [name for name in GROUPINGS if name != "tenant"]
        of_tenant = [
            *portal_pages(image).values(),
            *(f"/console/usage?group={name}&mode=live" for name in groups),
            "/console/usage?by=month&period=365d&mode=live",
        ]
        found.viewers["operator"] = await enter(signed_in_as(served, Role.OPERATOR_VIEWER))
        found.paths["operator"] = [
            *(path for path in pages().values() if "login" not in path),
            *(await details(served, seeded)).values(),
            *(f"/console/costs?group={name}" for name in GROUPINGS),
            "/console/costs/calls",
            "/console/costs?by=hour&period=today&group=tenant",
            f"/console/costs?tenant={tenant.id}&by=hour&period=today&mode=test",
        ]
        found.viewers["admin"] = await enter(person(served, Role.TENANT_ADMIN, tenant_id=tenant.id))
        found.paths["admin"] = of_tenant
        found.viewers["key"] = await enter(by_key(served, key))
        found.paths["key"] = ["/console", "/console/usage", "/console/usage/calls", THIS_KEY]
        user_id = next(iter(tenant.users.values()))
        found.viewers["member"] = await enter(
            person(served, Role.TENANT_MEMBER, tenant_id=tenant.id, user_id=user_id)
        )
        found.paths["member"] = [path for path in of_tenant if path.startswith(OF_MEMBERS)]
        yield found
    await postgres.drop(url)


async def shown(http: httpx2.AsyncClient, path: str) -> str:
    answer = await http.get(path)
    assert answer.status_code == 200, (path, answer.status_code)
    return answer.text


async def sum_of_calls(http: httpx2.AsyncClient, path: str) -> Decimal:
    """Add up all pages of a list of calls: costs, or what is held in a list of open ones."""
    total, following = Decimal(0), path
    is_open = any(held in path for held in HELD)
    while following:
        text = await shown(http, following)
        for row in text.split("<tr>")[1:]:
            is_held = " held</a>" in row
            if is_held == is_open:
                total += sum(one.usd for one in amounts_of(row) if one.name == "Cost")
        older = OLDER.search(text)
        following = unescape(older.group(1)) if older else ""
    return total


def entries_of(path: str, amounts: list[Amount]) -> list[Amount]:
    """The amounts of a page that entries add up to."""
    is_request = REQUEST.fullmatch(path) is not None
    return [one for one in amounts if not is_request and one.name not in NO_ENTRIES]


@pytest.mark.parametrize("who", ["operator", "admin", "key"])
async def test_every_amount_is_a_link_to_its_entries(books: Books, who: str) -> None:
    http, amounts, unlinked = books.viewers[who], 0, []
    for path in books.paths[who]:
        found = entries_of(path, amounts_of(await shown(http, path)))
        amounts += len(found)
        unlinked += [(path, one.name, one.usd) for one in found if one.link is None]
    assert unlinked == []
    assert amounts > {"operator": 200, "admin": 150, "key": 3}[who]


@pytest.mark.parametrize(
    "after", ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-4fff-bfff-ffffffffffff"]
)
async def test_a_list_of_calls_begins_after_any_id(books: Books, after: str) -> None:
    for who, path in zip(("operator", "admin"), CALL_LISTS, strict=True):
        page = await shown(books.viewers[who], f"{path}?after={after}&mode=live")
        assert ("No call matches" in page) == after.startswith("0"), path


@pytest.mark.parametrize("who", ["operator", "admin", "member", "key"])
async def test_the_entries_behind_an_amount_add_up_to_it(books: Books, who: str) -> None:
    http = books.viewers[who]
    led = {
        (one.link, one.usd)
        for path in books.paths[who]
        for one in entries_of(path, amounts_of(await shown(http, path)))
        if one.link is not None
    }
    wrong: list[tuple[str, Decimal, Decimal | None]] = []
    lists = 0
    for link, usd in sorted(led):
        if link.startswith(CALL_LISTS):
            lists += 1
            total = await sum_of_calls(http, link)
            if total != usd:
                wrong.append((link, usd, total))
        elif link not in OTHER_SUMS:
            found = [one.usd for one in amounts_of(await shown(http, link))]
            # The overview adds what a budget has spent and holds, two amounts on its own page.
            if usd not in {*found, *map(add, found, found[1:])}:
                wrong.append((link, usd, None))
    assert wrong == [], wrong
    assert lists > {"operator": 60, "admin": 50, "member": 20, "key": 1}[who]
