"""`make screenshots`: the images of docs/console-tour.md, from seeded data.

They are written to docs/images/console with few colours, so that they are small. `ARGS=folder`
writes every page there instead, on a desk, dark and on a phone, and without any data: to be looked
at after a change.
"""

import asyncio
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.async_api import Page

from gateway.console.navigation import NAVIGATION
from gateway.db.embedded import EmbeddedPostgres
from tests.console_browser import CHROMIUM, NO_BROWSER, ROOT, Visitor, signed_in
from tests.console_portal import TENANT, make_images, operator_cookies, portal_pages, tenant_cookies
from tests.console_seed import Seeded, seed
from tests.harness import PostgresServer, Served, make_settings, served_gateway

FOLDER = ROOT / "docs/images/console"
VIEWS = (("", 1440, "light"), ("-dark", 1440, "dark"), ("-phone", 390, "light"))
CALLS = 24_000
COLOURS = 256
DESK_HEIGHT = 1000
PHONE_HEIGHT = 844
NO_IMAGE = "none"
SHOWN = """() => Promise.all([...document.images]
  .filter((image) => image.getBoundingClientRect().top < innerHeight)
  .map((image) => image.decode()))"""
"""Wait for the images in sight."""
MORE: dict[str, str] = {
    "costs-tenants": "/console/costs?group=tenant&period=month",
    "costs-calls": "/console/costs/calls?status=estimated",
    "own-sessions": "/console/sessions",
    "sign-in": "/console/login",
    "costs-empty": "/console/costs?start=2026-01-01&end=2026-01-02",
}
"""Further states of pages, by the name of their file."""


@dataclass(frozen=True)
class Shot:
    """An image of the tour: a page of those below, in one or more views."""

    page: str
    views: tuple[str, ...] = ("",)
    height: int = DESK_HEIGHT


TOUR = (
    Shot("overview", ("", "-dark", "-phone")),
    Shot("costs"),
    Shot("request", height=1250),
    Shot("unknown-call"),
    Shot("tenant-budgets"),
    Shot("model", ("-dark",)),
    Shot("portal-home", ("", "-phone")),
    Shot("portal-playground"),
    Shot("portal-playground-edit", ("-dark",)),
    Shot("portal-gallery", ("", "-phone"), height=800),
    Shot("portal-usage"),
    Shot("portal-portal-requests", height=800),
    Shot("portal-keys", height=640),
    Shot("portal-connect", height=900),
)


def pages() -> dict[str, str]:
    """Every page of the operator's navigation, and further states, by the names of their files."""
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
        "SELECT id FROM request_log WHERE cost_nano > 0 AND livemode ORDER BY at DESC LIMIT 1"
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
            await page.evaluate(SHOWN)
            await page.screenshot(path=folder / f"{name}{suffix}.png", full_page=True)
            await page.context.close()
            visitor.open.remove(page.context)


async def take_empty(server: PostgresServer, folder: Path, place: Path) -> None:
    """Write the images of the pages of a gateway without any data."""
    settings = make_settings(await server.create(), place)
    async with served_gateway(settings) as served:
        async with signed_in(served, await operator_cookies(served)) as visitor:
            await take(visitor, folder, {f"{name}-empty": path for name, path in pages().items()})
        async with signed_in(served, await tenant_cookies(served, served.tenant_id)) as visitor:
            shown = {
                f"{name}-empty": path
                for name, path in portal_pages(NO_IMAGE).items()
                if NO_IMAGE not in path
            }
            await take(visitor, folder, shown)


async def take_tour(visitor: Visitor, folder: Path, shown: Mapping[str, str]) -> None:
    """Write those images of the tour whose pages are given."""
    for shot in TOUR:
        for suffix, width, theme in VIEWS:
            if shot.page in shown and suffix in shot.views:
                height = PHONE_HEIGHT if width < DESK_HEIGHT else shot.height
                page = await visitor.visit(
                    shown[shot.page], theme=theme, width=width, height=height
                )
                await prepare(page, shot.page)
                content = await page.screenshot()
                file = folder / f"{shot.page}{suffix}.png"
                await asyncio.to_thread(write_small, content, file)
                await page.context.close()
                visitor.open.remove(page.context)


async def prepare(page: Page, name: str) -> None:
    """Do what a page of the tour shows the result of."""
    if name == "portal-playground":
        await page.get_by_label("Prompt").fill("A lighthouse at dawn, calm sea, watercolour")
        await page.locator("#quality").select_option("low")
        await page.get_by_role("button", name="Make image").click()
        await page.locator("#output .result img").wait_for()
        await page.evaluate("window.scrollTo(0, 0)")
    elif name == "portal-playground-edit":
        async with page.expect_response("**/playground/quote*"):
            await page.get_by_label("Prompt").fill("The same scene in winter")
        await page.locator("#quote .buy__most").wait_for()
    await page.evaluate(SHOWN)


def write_small(content: bytes, file: Path) -> None:
    """Write a PNG with a palette: a page has few colours."""
    with Image.open(io.BytesIO(content)) as image:
        flat = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        flat.save(file, optimize=True)


async def main(folder: Path | None) -> None:
    """Serve a seeded gateway and take the images."""
    if CHROMIUM is None:
        sys.exit(NO_BROWSER)
    target, taking = (FOLDER, take_tour) if folder is None else (folder, take)
    await asyncio.to_thread(target.mkdir, parents=True, exist_ok=True)
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
                cookies = await operator_cookies(served)
                async with signed_in(served, cookies) as visitor:
                    await taking(visitor, target, pages() | await details(served, seeded))
                    visitor.cookies = await tenant_cookies(served, seeded.tenants[TENANT].id)
                    await taking(visitor, target, portal_pages(image))
            if folder is not None:
                await take_empty(server, target, Path(place) / "empty")
        finally:
            await embedded.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
