"""`make screenshots`: an image of every page of the console, from seeded data.

Desktop, phone and dark. They are written to docs/images/console, or to the folder that is named.
"""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from gateway.console.navigation import NAVIGATION
from gateway.db.embedded import EmbeddedPostgres
from tests.console_browser import CHROMIUM, NO_BROWSER, ROOT, Visitor, signed_in
from tests.console_portal import make_images, portal_cookies, portal_pages
from tests.console_seed import Seeded, seed
from tests.harness import PostgresServer, Served, make_settings, served_gateway

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


async def details(served: Served, seeded: Seeded) -> dict[str, str]:
    """The pages of single objects: a tenant with its tabs, a call to resolve, a request."""
    tenant = f"/console/tenants/{seeded.tenants['Northwind Travel'].id}"
    tabs = ("keys", "users", "budgets", "limits", "credentials", "webhooks", "settings", "audit")
    [unknown] = await served.owner_sql(
        "SELECT id FROM reservation WHERE outcome = 'ambiguous' ORDER BY id DESC LIMIT 1"
    )
    [request] = await served.owner_sql(
        "SELECT id FROM request_log WHERE cost_nano > 0 ORDER BY at DESC LIMIT 1"
    )
    [hook] = await served.owner_sql("SELECT id FROM webhook_endpoint ORDER BY id DESC LIMIT 1")
    return {
        "tenant": tenant,
        **{f"tenant-{tab}": f"{tenant}/{tab}" for tab in tabs},
        "unknown-call": f"/console/requests/{unknown.id}",
        "request": f"/console/requests/{request.id}",
        "webhook": f"/console/webhooks/{hook.id}",
        "model": "/console/models/gpt-image-2",
    }


async def take(visitor: Visitor, folder: Path, shown: Mapping[str, str]) -> None:
    """Write the images of pages, by the names of their files."""
    for name, path in shown.items():
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
                seeded = await seed(served, calls=CALLS)
                image = await make_images(served, seeded)
                async with signed_in(served) as visitor:
                    await take(visitor, folder, pages() | await details(served, seeded))
                    visitor.cookies = await portal_cookies(served, seeded)
                    await take(visitor, folder, portal_pages(image))
        finally:
            await embedded.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
