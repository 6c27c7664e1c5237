"""The first page: operators' overview with its live tiles, or a tenant's home."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from gateway.billing.model_askers import asked_days
from gateway.bootstrap import Gateway
from gateway.console.cookies import read_cookie
from gateway.console.dependencies import OperatorReader, ViewerDep
from gateway.console.overview import LIVE_SECONDS, Overview
from gateway.console.pages.tenant_home import show_home
from gateway.console.paths import HOME
from gateway.console.portal import portal_of
from gateway.console.render import Shell, fragment, page
from gateway.console.shell import shell_of
from gateway.db.engine import DatabaseUnavailable
from gateway.errors import GatewayError, Unavailable
from gateway.identity import sessions
from gateway.identity.sessions import SessionEnded
from gateway.identity.transactions import reading_as_operator
from gateway.identity.viewers import Permission
from gateway.rest.dependencies import GatewayDep
from gateway.tenancy import tenants
from gateway.tenancy.tenants import Tenant

EVENTS = "/console/events"
MAX_WATCHERS = 40
"""Open streams of live tiles in one process; further ones are asked to come again."""
WATCH_SECONDS = 300
"""A stream ends after this time. The browser asks again, with its session."""
WATCHABLE_SECONDS = 1800
"""A page is kept up to date for this time: a screen that is left open does not ask for ever. Its
streams end with the session, and do not keep it from becoming idle."""
RETRY_MS = 5000
OVER = "event: over\ndata: reload the page\n\n"
"""The event at which the page closes its stream for good."""
TEMPLATE = "overview.html"

router = APIRouter()


class TooManyWatchers(Unavailable):
    """All streams of live tiles are in use; the page itself can still be read."""

    def __init__(self) -> None:
        super().__init__(
            f"The console has {MAX_WATCHERS} open live views already. Reload the page to see the "
            "newest figures.",
            retry_after_seconds=60,
        )


class Watchers:
    """The overview's figures, and the streams that show them. One in each process."""

    def __init__(self, gateway: Gateway) -> None:
        self.overview = Overview(gateway)
        self._leaving = gateway.leaving
        self._database = gateway.database
        self._number = 0

    def check(self) -> None:
        """Refuse a further stream if there are too many.

        A stream counts itself once it runs: of one whose client has left before, no code runs, so
        that it could not be subtracted again. Streams that begin at once may exceed the bound.

        Raises:
            TooManyWatchers: there are too many.
        """
        if self._number >= MAX_WATCHERS:
            raise TooManyWatchers

    async def stream(self, shell: Shell, token: str) -> AsyncIterator[str]:
        """Yield the tiles as server-sent events whenever they have changed, for a while.

        The stream ends with the session of `token`, which it does not keep from becoming idle.
        """
        self._number += 1
        try:
            yield f"retry: {RETRY_MS}\n\n"
            shown = ""
            for _ in range(WATCH_SECONDS // LIVE_SECONDS):
                if not await self._lasts(token):
                    return
                with suppress(GatewayError):  # the database is away: the tiles stay as they are
                    figures = await self.overview.live.get()
                    tiles = fragment(shell, TEMPLATE, "tiles", live=figures)
                    if tiles != shown:
                        shown = tiles
                        yield "".join(f"data: {line}\n" for line in tiles.splitlines()) + "\n"
                with suppress(TimeoutError):
                    async with asyncio.timeout(LIVE_SECONDS):
                        await self._leaving.wait()
                    return
        finally:
            self._number -= 1

    async def _lasts(self, token: str) -> bool:
        try:
            await sessions.find(self._database, token, touches=False)
        except SessionEnded:
            return False
        except DatabaseUnavailable:
            return True
        return True


async def get_watchers(request: Request) -> Watchers:
    """Return the process's watchers, made when they are first asked for."""
    state = request.app.state
    if not hasattr(state, "console_watchers"):
        state.console_watchers = Watchers(state.gateway)
    watchers: Watchers = state.console_watchers
    return watchers


WatchersDep = Annotated[Watchers, Depends(get_watchers)]


@router.get(HOME)
async def home(
    viewer: ViewerDep, gateway: GatewayDep, watchers: WatchersDep, request: Request
) -> Response:
    """Show operators the overview, and tenants their home."""
    if viewer.tenant_id is not None:
        return await show_home(portal_of(viewer, gateway, request))
    viewer.require(Permission.OPERATOR_READ)
    live = await watchers.overview.live.get()
    newest: tuple[Tenant, ...] = ()
    if live.is_unused and viewer.may(Permission.PORTAL_VISIT):
        async with reading_as_operator(gateway, viewer) as session:
            newest = (await tenants.list_page(session, limit=1)).items
    return page(
        shell_of(viewer, request),
        TEMPLATE,
        title="Overview",
        lead="Live calls of all tenants. Days are those of each tenant's time zone; other times "
        f"are in {viewer.time_zone}.",
        live=live,
        first_tenant=newest[0] if newest else None,
        asked=asked_days(),
        slow=await watchers.overview.slow.get(),
        events=f"{EVENTS}?opened={int(time.time())}",
    )


@router.get(EVENTS)
async def events(
    viewer: OperatorReader,
    watchers: WatchersDep,
    request: Request,
    gateway: GatewayDep,
    opened: int = 0,
) -> Response:
    """Send the overview's tiles whenever they change, as server-sent events.

    `opened`: when the page was made, in Unix seconds.
    """
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    if not 0 <= int(time.time()) - opened <= WATCHABLE_SECONDS:
        return Response(OVER, media_type="text/event-stream", headers=headers)
    watchers.check()
    return StreamingResponse(
        watchers.stream(shell_of(viewer, request), read_cookie(request, gateway.settings)),
        media_type="text/event-stream",
        headers=headers,
    )
