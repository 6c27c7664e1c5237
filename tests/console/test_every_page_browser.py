"""Every page of the console in a real browser, by the application's own routes.

All names are hostile. Each page is checked by axe-core, light and dark, at the width of a phone,
and with scripts off; no script of a name runs, and no violation of the policy is reported.
"""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from gateway.domain import Scope
from gateway.identity.viewers import Role
from tests.console_browser import AXE, CHROMIUM, NO_AXE, NO_BROWSER
from tests.console_helpers import everyone
from tests.console_house import House, axe, looks, opened_house, parts_of
from tests.console_routes import CANARY, Owned, tenant_with_everything
from tests.console_seed import seed
from tests.harness import PostgresServer, Served, make_settings, served_gateway

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER),
    pytest.mark.skipif(not AXE.exists(), reason=NO_AXE),
]
STATES: Mapping[str, tuple[str, ...]] = {
    Role.OPERATOR_ADMIN: (
        "/console/costs?group=tenant&period=month",
        "/console/costs?group=key&mode=test&by=hour&period=7d",
        "/console/costs?start=2026-01-01&end=2026-01-02",
        "/console/costs?group=colour",
        "/console/requests?error_code=outcome_unknown",
        "/console/nowhere",
    ),
    Role.TENANT_ADMIN: (
        "/console?mode=live",
        "/console/usage?group=key&mode=test",
        "/console/usage?start=2026-01-01&end=2026-01-02",
        "/console/gallery?user=none&mode=test",
        "/console/portal/requests?show=failed&mode=test",
        "/console/playground?operation=edit&mode=test",
        "/console/playground?image={image_id}&mode=test",
        "/console/playground?same={image_id}&mode=test",
        "/console/people",
        "/console/people/sessions",
        "/console/costs",
    ),
    "key": ("/console", "/console/usage", "/console/portal/budgets"),
    "": ("/console/login?ended=idle", "/console/login/link?token=x"),
}
"""Further states of pages, by who opens them: empty, filtered, refused."""
EXPECTED = re.compile(
    r"the server responded with a status of 4|The specified value .* does not conform"
)
"""Words of the browser about pages and forms that are refused on purpose."""
EVERYONE = ("", *Role, "key", "key of usage alone", "visitor")
"""Those who look: "" has no session, "visitor" is an operator in a tenant's portal."""
HOSTILE = {Role.OPERATOR_ADMIN: 10, Role.TENANT_ADMIN: 10, "": -1, "key of usage alone": -1}
"""More pages than these show a hostile name; they would prove nothing otherwise."""
FEWEST = 6
"""Pages that each role has."""
OK = 200
CLIENT_ERROR = 400
FULL = pytest.mark.full
NONSENSE = "?!"
ID = re.compile(r"[0-9a-f-]{36}|\b\d+\b|\?.*")
TYPED = "input:not([type=hidden],[type=checkbox],[type=radio],[type=file],[type=password])"
FORMS = f"""() => [...document.forms].flatMap((form, at) =>
  form.method === "post" && !form.action.includes("/playground") && form.querySelector("{TYPED}")
    ? [[at, new URL(form.action).pathname]] : [])"""
"""The forms of a page into which something is typed, by their number, with their address."""
SEND_NONSENSE = f"""(at) => {{
  const form = document.forms[at];
  for (const input of form.querySelectorAll("{TYPED}")) {{
    input.type = "text";
    input.value = "{NONSENSE}";
  }}
  form.noValidate = true;
  form.requestSubmit();
}}"""
KEPT = (
    f"""() => [...document.querySelectorAll("input")].some((one) => one.value === "{NONSENSE}")"""
)


EVIL_TENANT = "<img src=x onerror=\"document.title='owned'\">"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """One gateway for the file."""
    url = await postgres.create()
    settings = make_settings(url, tmp_path_factory.mktemp("house"), console_sign_ins_per_minute=999)
    async with served_gateway(settings) as one:
        yield one
    await postgres.drop(url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owned(served: Served) -> Owned:
    """A tenant with one of everything, among others with calls; all its names are hostile."""
    await seed(served, calls=300)
    return await tenant_with_everything(served, EVIL_TENANT)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(served: Served, owned: Owned) -> AsyncIterator[House]:
    """Browsers of everyone; at the end no page may have had a fault."""
    async with opened_house(served) as found, AsyncExitStack() as stack:
        people = await everyone(
            stack, served, owned.key, tenant_id=owned.tenant_id, user_id=owned.key.user_id
        )
        for who, client in people.items():
            await found.add(who, client)
        yield found
    assert [one for one in found.faults.found if not EXPECTED.search(one)] == []


def addresses(house: House, owned: Owned, who: str) -> list[str]:
    """Each page that someone may open, and further states of pages."""
    states = [path.format(**owned.ids) for path in STATES.get(who, ())]
    return house.addresses(who, owned.ids) + states


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def empty_house(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    """Browsers of everyone at a gateway without any data; no page may have had a fault."""
    url = await postgres.create()
    settings = make_settings(url, tmp_path_factory.mktemp("empty"), console_sign_ins_per_minute=999)
    async with (
        served_gateway(settings) as served,
        opened_house(served) as found,
        AsyncExitStack() as stack,
    ):
        key = await served.key(livemode=False, scopes=[*Scope])
        people = await everyone(stack, served, key, tenant_id=served.tenant_id)
        for who, client in people.items():
            await found.add(who, client)
        yield found
    await postgres.drop(url)
    assert found.faults.found == []


async def look_at(house: House, who: str, paths: Sequence[str], *, answers: bool = False) -> int:
    """Check pages as someone sees them; return the number of those with a hostile name.

    A page that another role has opened before is not checked by axe-core again: a role sees parts
    of what an administrator sees. `answers`: each must be found.
    """
    found, hostile = [], 0
    page, plain = await house.window(who, checks=True), await house.window(who, scripts=False)
    for path in paths:
        answer = await page.goto(path, wait_until="load")
        assert answer is not None
        assert not answers or answer.status == OK, (who, path, answer.status)
        hostile += CANARY in await page.inner_text("body")
        assert "owned" not in (await page.title()).split(" "), path
        assert await page.locator("img[src=x]").count() == 0, path
        if path in house.seen:
            continue
        found += await looks(page)
        await plain.goto(path)
        assert await parts_of(page) == await parts_of(plain), (who, path)
        assert await plain.locator("h1").first.is_visible(), path
        house.seen.add(path)
    assert not found, "\n".join(found)
    return hostile


@pytest.mark.timeout(600)
@pytest.mark.parametrize("who", EVERYONE)
async def test_every_page_meets_wcag_2_2_aa_runs_no_script_of_a_name_and_reads_without_scripts(
    house: House, owned: Owned, who: str
) -> None:
    hostile = await look_at(house, who, addresses(house, owned, who))
    assert hostile > HOSTILE.get(who, 0)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "who",
    [
        # The others see parts of their pages.
        who if who in {Role.OPERATOR_ADMIN, Role.TENANT_ADMIN} else pytest.param(who, marks=FULL)
        for who in EVERYONE[1:]
    ],
)
async def test_every_page_is_good_without_any_data(empty_house: House, who: str) -> None:
    ids = {"tenant_id": str(empty_house.served.tenant_id), "model_id": "gpt-image-2"}
    paths = empty_house.addresses(who, ids)
    assert len(paths) >= FEWEST
    await look_at(empty_house, who, paths, answers=True)


@pytest.mark.timeout(600)
async def test_refused_forms_are_shown_again_as_accessible_pages(
    house: House, owned: Owned
) -> None:
    found, tried, refused = [], set(), set()
    for who in ("", Role.OPERATOR_ADMIN, Role.TENANT_ADMIN, "key"):
        page = await house.window(who, checks=True)
        for path in addresses(house, owned, who):
            await page.goto(path)
            for form, action in await page.evaluate(FORMS):
                if (kind := ID.sub("{}", action)) in tried:
                    continue
                tried.add(kind)
                await page.goto(path)
                async with page.expect_navigation() as navigation:
                    await page.evaluate(SEND_NONSENSE, form)
                answer = await navigation.value
                if answer.status >= CLIENT_ERROR:
                    refused.add(kind)
                    # A confirmation is typed anew.
                    if not (kind.endswith("/delete") or await page.evaluate(KEPT)):
                        found.append(f"{kind} does not keep what was typed")
                    found += await axe(page)
    assert len(refused) > 12, refused
    assert not found, "\n".join(found)
