"""The documentation site: built without a warning, whole without a network, read in a browser."""

import hashlib
import re
import subprocess
import threading
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page

from tests.console_browser import CHROMIUM, NO_BROWSER, Faults, chromium
from tests.docs.pages import DOCS, ROOT, all_blocks, name_of, pages

MKDOCS = ROOT / ".venv/docs/bin/mkdocs"
VENDOR = ROOT / "docs-site/theme/assets/vendor"
LOADED = {
    ("img", "src"),
    ("script", "src"),
    ("link", "href"),
    ("iframe", "src"),
    ("form", "action"),
}
PHONE, DESK = 390, 1280
SHOWN = ("README", "settings", "routes", "cli", "models", "troubleshooting", "guides/README")
DRAWN = sorted({block.page for block in all_blocks() if block.language == "mermaid"})

needs_mkdocs = pytest.mark.skipif(
    not (MKDOCS.parents[1] / ".ready").exists(), reason="MkDocs is not installed: make docs"
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [MKDOCS, "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={"NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that writes no log."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site at a server that knows nothing but files."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


class Loads(HTMLParser):
    """The addresses that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if (tag, name) in LOADED]
        self.found += [value or "" for name, value in attrs if name in {"srcset", "style"}]


def loaded_by(html: str) -> list[str]:
    """The addresses on other hosts that a page loads."""
    reader = Loads()
    reader.feed(html)
    return [one for one in reader.found if "//" in one and not one.startswith("data:")]


def html_of(page: str) -> str:
    """The place of a page of docs/ in the site."""
    below = page.removeprefix("docs/").removesuffix(".md")
    return re.sub(r"(^|/)README$", r"\1index", below) + ".html"


def test_vendored_files_are_those_that_were_recorded() -> None:
    recorded = tomllib.loads((ROOT / "docs-site/VENDOR.toml").read_text())["packages"]
    files = [one for package in recorded for one in package["files"]]
    for one in files:
        found = hashlib.sha256((VENDOR / one["path"]).read_bytes()).hexdigest()
        assert found == one["sha256"], one["path"]
    licences = {package["licence_file"] for package in recorded}
    assert {path.name for path in VENDOR.iterdir()} == {one["path"] for one in files} | licences
    assert all(package["integrity"].startswith("sha512-") for package in recorded)
    assert all("Permission is hereby granted" in (VENDOR / name).read_text() for name in licences)


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    named = {page for entry in re.findall(r"[\w/-]+(?:\.md|/\*)", text) for page in listed(entry)}
    assert named == {name_of(page) for page in pages() if page.is_relative_to(DOCS)}


def listed(entry: str) -> set[str]:
    """The pages of an entry: one, or those of a folder."""
    return {name_of(page) for page in DOCS.glob(entry.replace("/*", "/*.md"))}


@needs_mkdocs
def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    built = sorted(site.rglob("*.html"))
    assert len(built) > len(list(DOCS.rglob("*.md")))  # the changelog and others, and 404
    loaded = {page.name: loaded_by(page.read_text()) for page in built}
    assert {name: found for name, found in loaded.items() if found} == {}
    for sheet in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import )['\"]?((?:https?:)?//[^)'\"]+)", sheet.read_text())
        assert found == [], sheet.name


def test_a_script_and_a_font_of_another_host_are_found() -> None:
    for planted in (
        '<script src="https://example.com/a.js">',
        '<link href="//fonts.example.com/css" rel="stylesheet">',
        '<img src="http://example.com/a.png">',
        '<p style="background: url(https://example.com/a.png)">',
    ):
        assert loaded_by(planted) != []
    assert loaded_by('<script src="../a.js"></script><a href="https://example.com">') == []


@needs_mkdocs
def test_the_files_that_pages_link_to_are_in_the_site(site: Path) -> None:
    for path in ("repository/CHANGELOG.html", "repository/deploy/alerts.yaml"):
        assert (site / path).is_file(), path
    assert (site / "repository/env.example").read_bytes() == (ROOT / ".env.example").read_bytes()


@dataclass(frozen=True)
class Measured:
    """A page as it is shown: its diagrams' heights, tables beyond its width, its colours."""

    drawn: list[int]
    cut_tables: int
    is_too_wide: bool
    scheme: str


MEASURE = """() => ({
    drawn: [...document.querySelectorAll("div.mermaid")].map((one) => one.offsetHeight),
    cut_tables: [...document.querySelectorAll(".md-typeset__scrollwrap")]
        .filter((one) => one.scrollWidth > one.clientWidth + 1).length,
    is_too_wide: document.documentElement.scrollWidth > innerWidth,
    scheme: document.body.dataset.mdColorScheme,
})"""
SEARCH, RESULTS = ".md-search__input", ".md-search-result__item a"
SEARCH_MS = 90_000


@asynccontextmanager
async def browsing(address: str, *, theme: str = "light", width: int = DESK) -> AsyncIterator[Page]:
    """A page of a browser that has no network, in which nothing may go wrong."""
    faults = Faults(urlsplit(address).netloc)
    async with chromium() as browser:
        context = await browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if theme == "dark" else "light",
            is_mobile=width == PHONE,
            reduced_motion="reduce",
        )
        faults.watch(context)
        yield await context.new_page()
    assert faults.found == []


async def measure(page: Page, url: str) -> Measured:
    """Open a page, wait for its diagrams, and look at it."""
    await page.goto(url, wait_until="load")
    await page.wait_for_function("!document.querySelector('pre.mermaid')")
    return Measured(**await page.evaluate(MEASURE))


@needs_mkdocs
@needs_browser
@pytest.mark.parametrize(("theme", "width"), [("light", DESK), ("dark", DESK), ("light", PHONE)])
async def test_pages_are_readable_and_their_diagrams_drawn(
    address: str, theme: str, width: int
) -> None:
    shown = [*DRAWN, *(f"docs/{name}.md" for name in SHOWN)]
    async with browsing(address, theme=theme, width=width) as page:
        found = {name: await measure(page, f"{address}/{html_of(name)}") for name in shown}
    for name, measured in found.items():
        blocks = [one for one in all_blocks() if (one.page, one.language) == (name, "mermaid")]
        assert len(measured.drawn) == len(blocks), name
        assert all(height > 80 for height in measured.drawn), (name, measured.drawn)
        assert not measured.is_too_wide, name
        assert width == PHONE or measured.cut_tables == 0, name
        assert measured.scheme == ("slate" if theme == "dark" else "default")


@needs_mkdocs
@needs_browser
@pytest.mark.parametrize("from_files", [False, True], ids=["served", "files"])
async def test_the_search_finds_a_page(site: Path, address: str, *, from_files: bool) -> None:
    start = site.as_uri() if from_files else address
    async with browsing(address) as page:
        await page.goto(f"{start}/index.html")
        # The theme reads what was typed when a key is released, not when the field changes.
        await page.locator(SEARCH).press_sequentially("budget_exceeded")
        # A busy machine takes long to read the index of all pages.
        await page.wait_for_selector(RESULTS, timeout=SEARCH_MS)
        hrefs = await page.eval_on_selector_all(RESULTS, "all => all.map((one) => one.href)")
        assert any("/troubleshooting.html" in href for href in hrefs), hrefs
        assert all(href.startswith(start) for href in hrefs)
