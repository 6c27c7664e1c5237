"""Every page of the console in a real browser, by the application's own routes.

All names are hostile. Each page is checked by axe-core, light and dark, at the width of a phone,
and with scripts off; no script of a name runs, and no violation of the policy is reported.
"""

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from gateway.console.navigation import NAVIGATION
from gateway.identity.viewers import Role
from tests.console_browser import (
    AXE,
    AXE_TAGS,
    CHROMIUM,
    NO_AXE,
    NO_BROWSER,
    Faults,
    Visitor,
    chromium,
)
from tests.console_helpers import by_key, person, signed_in_as
from tests.console_routes import (
    CANARY,
    IN_TENANT,
    KEY,
    OPEN,
    Owned,
    every_route,
    needs,
    tenant_with_everything,
)
from tests.console_seed import seed
from tests.harness import PostgresServer, Served, make_settings, served_gateway

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER),
]
STATES: Mapping[str, tuple[str, ...]] = {
    "operator": (
        "/console/costs?group=tenant&period=month",
        "/console/costs?group=key&mode=test&by=hour&period=7d",
        "/console/costs?start=2026-01-01&end=2026-01-02",
        "/console/costs?group=colour",
        "/console/requests?error_code=outcome_unknown",
        "/console/nowhere",
    ),
    "admin": (
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
TENANT = {
    *("tenant:read", "tenant:change", "usage:read", "images:read", "images:make"),
    *("own-credentials", IN_TENANT),
}
NOT_PAGES = {"/console/events", "/console/login/oidc"}
EXPECTED = re.compile(
    r"the server responded with a status of 4|The specified value .* does not conform"
)
"""Words of the browser about pages and forms that are refused on purpose."""
CLIENT_ERROR = 400
PHONE = 390
COUNT = """body => ["h1", "h2", "table", "tbody tr", ".tile", ".chart", "nav a", "form"]
  .map((one) => `${one}: ${body.querySelectorAll(one).length}`)"""
"""The parts of a page: scripts may add none."""
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


@dataclass
class House:
    """A served gateway with hostile names, and browsers of an operator, a tenant and a key."""

    served: Served
    owned: Owned
    visitors: dict[str, Visitor]
    faults: Faults

    def addresses(self) -> list[tuple[str, str]]:
        """Each page, with who opens it."""
        known = needs()
        found = []
        for route in every_route(self.served.app):
            if route.is_safe and route.path not in NOT_PAGES:
                need = known[str(route)]
                who = "admin" if need in TENANT else "operator"
                who = {OPEN: "", KEY: "key"}.get(need, who)
                mode = "?mode=test" if who == "admin" else ""
                found.append((who, route.fill(self.owned.ids) + mode))
        states = [(who, path) for who, paths in STATES.items() for path in paths]
        return found + [(who, path.format(**self.owned.ids)) for who, path in states]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    """One gateway for the file; at the end no page may have had a fault."""
    url = await postgres.create()
    settings = make_settings(url, tmp_path_factory.mktemp("house"))
    async with served_gateway(settings) as served, AsyncExitStack() as stack:
        await seed(served, calls=300)
        owned = await tenant_with_everything(served, EVIL_TENANT)
        browser = await stack.enter_async_context(chromium())
        faults = Faults(urlsplit(served.base_url).netloc)
        people = {
            "operator": signed_in_as(served, Role.OPERATOR_ADMIN),
            "admin": person(served, Role.TENANT_ADMIN, tenant_id=owned.tenant_id),
            "key": by_key(served, owned.key),
        }
        visitors = {"": Visitor(browser, served.base_url, [], faults)}
        for name, someone in people.items():
            client = await stack.enter_async_context(someone)
            visitors[name] = _visitor(browser, served, client.cookies["ig_session"], faults)
        yield House(served, owned, visitors, faults)
        for visitor in visitors.values():
            for context in visitor.open:
                await context.close()
        assert [one for one in faults.found if not EXPECTED.search(one)] == []
    await postgres.drop(url)


EVIL_TENANT = "<img src=x onerror=\"document.title='owned'\">"


def _visitor(browser: Browser, served: Served, token: str, faults: Faults) -> Visitor:
    cookie: dict[str, object] = {"name": "ig_session", "value": token, "url": served.base_url}
    return Visitor(browser, served.base_url, [cookie], faults)


async def windows(house: House, *, scripts: bool = True, checks: bool = False) -> dict[str, Page]:
    """A window of each visitor; `checks`: with axe-core, as a script of the browser's own."""
    found = {}
    for name, visitor in house.visitors.items():
        context = await visitor.context(scripts=scripts)
        if checks:
            await context.add_init_script(path=AXE)
        found[name] = await context.new_page()
    return found


async def axe(page: Page, *rules: str) -> list[str]:
    """Check the page as it is now; with these rules alone, if any are given."""
    only = {"type": "rule", "values": rules} if rules else {"type": "tag", "values": AXE_TAGS}
    options = json.dumps({"runOnly": only, "resultTypes": ["violations"]})
    found = await page.evaluate(f"axe.run(document, {options})")
    return [
        f"{page.url}: {fault['id']}: {node['target']} {node['failureSummary']}"
        for fault in found["violations"]
        for node in fault["nodes"]
    ]


async def looks(page: Page) -> list[str]:
    """The faults of a page: light and dark, on a desk and on a phone."""
    found = await axe(page)
    await page.emulate_media(color_scheme="dark")
    found += [f"dark: {one}" for one in await axe(page, "color-contrast")]
    await page.emulate_media(color_scheme="light")
    await page.set_viewport_size({"width": PHONE, "height": 844})
    wide = await page.evaluate("document.documentElement.scrollWidth")
    if wide > PHONE:
        found.append(f"{page.url}: {wide} pixels wide on a phone")
    found += [f"phone: {one}" for one in await axe(page, "target-size")]
    await page.set_viewport_size({"width": 1440, "height": 900})
    return found


@pytest.mark.skipif(not AXE.exists(), reason=NO_AXE)
async def test_every_page_meets_wcag_2_2_aa_runs_no_script_of_a_name_and_reads_without_scripts(
    house: House,
) -> None:
    found, hostile = [], 0
    open_windows, plain = await windows(house, checks=True), await windows(house, scripts=False)
    listed = {
        item.path for groups in NAVIGATION.values() for group in groups for item in group.items
    }
    for who, path in house.addresses():
        page = open_windows[who]
        answer = await page.goto(path, wait_until="load")
        assert answer is not None
        found += await looks(page)
        hostile += CANARY in await page.inner_text("body")
        assert "owned" not in (await page.title()).split(" "), path
        assert await page.locator("img[src=x]").count() == 0, path
        if path.partition("?")[0] in listed:
            without = plain[who]
            await without.goto(path)
            seen = [await one.locator("body").evaluate(COUNT) for one in (page, without)]
            assert seen[0] == seen[1], path
            assert await without.locator("h1").first.is_visible(), path
    assert hostile > 20
    assert not found, "\n".join(found)


@pytest.mark.skipif(not AXE.exists(), reason=NO_AXE)
async def test_refused_forms_are_shown_again_as_accessible_pages(house: House) -> None:
    found, tried, refused = [], set(), set()
    open_windows = await windows(house, checks=True)
    for who, path in house.addresses():
        page = open_windows[who]
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
