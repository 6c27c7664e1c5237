"""A real Chromium for the console's pages, signed in, that fails on what a page must not do.

    async with signed_in(served) as page_of:
        page = await page_of("/console", theme="dark", width=390)

It reaches this machine alone: a request to any other host, an error on the console of the browser,
a violation of the content security policy and an answer of 5xx each fail the test.
"""

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    async_playwright,
)

from gateway.db.actors import Actor
from gateway.identity.links import make_link
from tests.harness import Served

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None
)
NO_BROWSER = "no Chromium on this machine: apt-get install chromium"
AXE = ROOT / ".venv/clients/node_modules/axe-core/axe.min.js"
NO_AXE = "axe-core is not installed: make clients"
AXE_TAGS = ("wcag2a", "wcag2aa", "wcag21aa", "wcag22aa")
FLAGS = (
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-default-apps", "--mute-audio"),
    # No other host has an address, whatever asks for one.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
HEIGHT = 900
REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`);
});
"""
"""Runs in each page before its own scripts; as a script of the browser's own, it is not blocked."""


@dataclass
class Faults:
    """The faults of pages, which must have none."""

    host: str
    found: list[str] = field(default_factory=list)

    def watch(self, context: BrowserContext) -> None:
        """Note the faults of each page of a context."""
        context.on("console", self._console)
        context.on("weberror", lambda error: self.found.append(f"error: {error.error}"))
        context.on("request", self._request)
        context.on("response", self._response)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.found.append(f"{message.type}: {message.text}")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in {"http", "https", "ws", "wss"} and parts.netloc != self.host:
            self.found.append(f"request to {request.url}")

    def _response(self, response: Response) -> None:
        if response.status >= 500:
            self.found.append(f"{response.status} of {response.url}")


@dataclass
class Visitor:
    """A signed-in person with a browser."""

    browser: Browser
    base_url: str
    cookies: Sequence[dict[str, object]]
    faults: Faults
    open: list[BrowserContext] = field(default_factory=list)

    async def context(
        self,
        *,
        theme: str = "light",
        width: int = 1440,
        height: int = HEIGHT,
        scripts: bool = True,
        bypass_csp: bool = False,
    ) -> BrowserContext:
        """A new window with the session's cookie."""
        made = await self.browser.new_context(
            base_url=self.base_url,
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
            java_script_enabled=scripts,
            bypass_csp=bypass_csp,
            reduced_motion="reduce",
            is_mobile=width < 600,
            locale="en-GB",
        )
        await made.add_cookies(self.cookies)  # type: ignore[arg-type]  # playwright's own dicts
        await made.add_init_script(REPORT_VIOLATIONS)
        if not bypass_csp:
            self.faults.watch(made)
        self.open.append(made)
        return made

    async def visit(self, path: str, **options: object) -> Page:
        """Open a page of the console in a new window; the answer must be 200."""
        context = await self.context(**options)  # type: ignore[arg-type]  # passed through
        page = await context.new_page()
        answer = await page.goto(path, wait_until="load")
        assert answer is not None
        assert answer.status == 200, f"{path}: {answer.status}"
        return page


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Start the machine's Chromium."""
    assert CHROMIUM is not None, NO_BROWSER
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*FLAGS, *sandbox], headless=True
        )
        try:
            yield browser
        finally:
            await browser.close()


async def session_cookies(served: Served) -> list[dict[str, object]]:
    """Sign in by a one-time link; return the browser's cookies."""
    actor = Actor("cli", "root")
    async with served.gateway.database.operator(by=actor) as session:
        link = await make_link(session, actor, served.gateway.settings)
    local = link.reveal().removeprefix(served.gateway.settings.public_url)
    async with served.http() as http:
        answer = await http.get(local)
        assert answer.status_code == 303, answer.text
        return [
            {"name": name, "value": value, "url": served.base_url}
            for name, value in http.cookies.items()
        ]


@asynccontextmanager
async def signed_in(
    served: Served, cookies: list[dict[str, object]] | None = None
) -> AsyncIterator[Visitor]:
    """Start a browser with an operator's session, or with these cookies.

    It fails at the end if pages did wrong.
    """
    faults = Faults(urlsplit(served.base_url).netloc)
    found = await session_cookies(served) if cookies is None else cookies
    async with chromium() as browser:
        visitor = Visitor(browser, served.base_url, found, faults)
        yield visitor
        for context in visitor.open:
            await context.close()
    assert not faults.found, "\n".join(faults.found)
