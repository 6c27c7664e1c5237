"""`make screenshots`: an image of every page of the console, from seeded data.

Desktop, phone and dark. They are written to docs/images/console, or to the folder that is named.
"""

import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from gateway.console.navigation import NAVIGATION
from gateway.db.embedded import EmbeddedPostgres
from tests.console_browser import CHROMIUM, NO_BROWSER, ROOT, Visitor, signed_in
from tests.console_seed import seed
from tests.harness import PostgresServer, make_settings, served_gateway

FOLDER = ROOT / "docs/images/console"
VIEWS = (("", 1440, "light"), ("-dark", 1440, "dark"), ("-phone", 390, "light"))
CALLS = 24_000
MORE: dict[str, str] = {
    "costs-tenants": "/console/costs?group=tenant&period=month",
    "own-sessions": "/console/sessions",
    "sign-in": "/console/login",
    "costs-empty": "/console/costs?start=2026-01-01&end=2026-01-02",
}
"""Further states of pages, by the name of their file."""


def pages() -> dict[str, str]:
    """Every page to show: those of the operator's navigation, and further states."""
    listed = [item.path for group in NAVIGATION["operator"] for item in group.items]
    names = (path.removeprefix("/console").strip("/").replace("/", "-") for path in listed)
    named = {name or "overview": path for name, path in zip(names, listed, strict=True)}
    return named | MORE


async def take(visitor: Visitor, folder: Path) -> None:
    """Write the images of all pages."""
    for name, path in pages().items():
        for suffix, width, theme in VIEWS:
            page = await visitor.visit(path, theme=theme, width=width)
            await page.screenshot(path=folder / f"{name}{suffix}.png", full_page=True)
            await page.context.close()
            visitor.open.remove(page.context)


async def main(folder: Path) -> None:
    """Serve a seeded gateway and take the images."""
    if CHROMIUM is None:
        sys.exit(NO_BROWSER)
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    with TemporaryDirectory() as place:
        embedded = EmbeddedPostgres(Path(place) / "postgres")
        try:
            server = PostgresServer(
                embedded.owner_url("postgres").render_as_string(hide_password=False)
            )
            await server.prepare()
            settings = make_settings(await server.create(), Path(place) / "data")
            async with served_gateway(settings) as served:
                await seed(served, calls=CALLS)
                async with signed_in(served) as visitor:
                    await take(visitor, folder)
        finally:
            await embedded.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
