"""Every page of the console in a real browser: who opens it, and the checks that it must pass.

A `House` is a served gateway with browsers of people; `addresses` lists the pages of one of them,
by the application's own routes.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx2
from playwright.async_api import Browser, Page

from gateway.identity import sessions
from gateway.identity.viewers import Viewer
from tests.console_browser import AXE, AXE_TAGS, Faults, Visitor, chromium
from tests.console_routes import OPEN, every_route, may, needs
from tests.harness import Served

NOT_PAGES = {"/console/events", "/console/login/oidc"}
PHONE = 390
COUNT = """body => ["h1", "h2", "table", "tbody tr", ".tile", ".chart", "nav a", "form"]
  .map((one) => `${one}: ${body.querySelectorAll(one).length}`)"""
"""The parts of a page: scripts may add none."""


@dataclass
class House:
    """A served gateway, and browsers of people by their names; "" has no session.

    `seen`: the pages that were looked at.
    """

    served: Served
    browser: Browser
    faults: Faults
    visitors: dict[str, Visitor] = field(default_factory=dict)
    viewers: dict[str, Viewer] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    async def add(self, name: str, client: httpx2.AsyncClient) -> None:
        """Add the browser of someone who has signed in."""
        token = client.cookies["ig_session"]
        cookie: dict[str, object] = {
            "name": "ig_session",
            "value": token,
            "url": self.served.base_url,
        }
        self.visitors[name] = Visitor(self.browser, self.served.base_url, [cookie], self.faults)
        self.viewers[name] = await sessions.find(self.served.gateway.database, token)

    def addresses(self, name: str, ids: Mapping[str, str], *, mode: str = "test") -> list[str]:
        """The pages that someone may open; those of objects are left out where `ids` lack them."""
        known, viewer = needs(), self.viewers.get(name)
        named = {key.rpartition(" ")[2] for key in ids}
        in_tenant = viewer is not None and viewer.tenant_id is not None
        routes = [
            route
            for route in every_route(self.served.app)
            if route.is_safe and route.path not in NOT_PAGES and set(route.parameters) <= named
        ]
        return [
            # Pages of operators have no mode, in a portal too.
            route.fill(ids) + f"?mode={mode}" * (in_tenant and not need.startswith("operator:"))
            for route in routes
            for need in [known[str(route)]]
            if (need == OPEN if viewer is None else need != OPEN and may(viewer, need))
        ]

    async def window(self, name: str, *, scripts: bool = True, checks: bool = False) -> Page:
        """A window of someone; `checks`: with axe-core, as a script of the browser's own."""
        context = await self.visitors[name].context(scripts=scripts)
        if checks:
            await context.add_init_script(path=AXE)
        return await context.new_page()


@asynccontextmanager
async def opened_house(served: Served) -> AsyncIterator[House]:
    """Start a browser, and close its windows at the end."""
    async with chromium() as browser:
        faults = Faults(urlsplit(served.base_url).netloc)
        house = House(served, browser, faults, {"": Visitor(browser, served.base_url, [], faults)})
        yield house
        for visitor in house.visitors.values():
            for context in visitor.open:
                await context.close()


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


async def parts_of(page: Page) -> list[str]:
    """The numbers of a page's headings, tables, rows, tiles, charts, links and forms."""
    counted: list[str] = await page.locator("body").evaluate(COUNT)
    return counted
