"""The ASGI application and the layers that a request passes through, from the outside in.

ErrorPages (errors as pages, for browsers) ─► Instrumentation (request id, metrics)
    ─► ConsoleGuard (its pages: cross-site requests, headers)
    ─► Authentication (bearer key or token → Caller)
    ─► Admission (concurrency, per-tenant queue) ─► rest/… routes, or the MCP server at /mcp
    ─► generation/pipeline
"""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from types import FrameType

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from gateway import __version__
from gateway.bootstrap import Gateway, open_gateway
from gateway.config import Settings, load_settings
from gateway.console import assets
from gateway.console import router as console
from gateway.console.dependencies import install_sign_in_redirect
from gateway.console.error_pages import ErrorPages
from gateway.console.guard import ConsoleGuard
from gateway.console.sign_in.limits import install_limit_page
from gateway.logs import configure_logging
from gateway.maintenance import Sweeper
from gateway.mcp_server.server import McpFront
from gateway.mcp_server.tools import TOOL_SCOPES
from gateway.parent_watch import end_with_parent
from gateway.rest import (
    admin,
    credentials,
    docs_pages,
    health,
    history,
    hosting,
    images,
    models,
    oauth,
    requests,
    simple,
    tenant,
    tools,
    usage,
)
from gateway.rest.errors import install_error_handlers
from gateway.rest.openapi import describe
from gateway.rest.uploads import UploadReader
from gateway.web.admission import AdmissionControl
from gateway.web.authentication import Authentication
from gateway.web.connections.bounds import last_seconds
from gateway.web.instrumentation import Instrumentation
from gateway.web.traces import NO_TELEMETRY, open_traces

GC_NEW_OBJECTS = 20_000
LATE_SECONDS = 0.25
"""Time in which a request that came last reaches the pipeline."""
STOP_SECONDS = 10
"""Time that a worker has after its drain to close its resources."""
DESCRIPTION = """
Image generation through one API, with costs accounted to the nano-dollar.

Speaks the OpenAI Images API: point an official SDK's `base_url` at `/v1` and use a key of this
gateway. MCP clients use the same key at `/mcp`.

Keys that begin with `igw_test_` use a sandbox and cost nothing.
"""


def create_app(settings: Settings, gateway: Gateway | None = None) -> FastAPI:
    """Build the application around an opened gateway; without one it opens its own at start."""
    mcp, traces = McpFront(settings), open_traces(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if traces is not None:
                stack.push_async_callback(traces.close)
            opened = (
                await stack.enter_async_context(open_gateway(settings))
                if gateway is None
                else gateway
            )
            app.state.gateway = opened
            await opened.keeper.health.examine()
            app.state.uploads = UploadReader(opened.settings)
            sweeper = Sweeper(opened)
            sweeper.start()
            stack.push_async_callback(sweeper.close)
            await stack.enter_async_context(mcp.manager.run())
            if gateway is None:
                await stack.enter_async_context(_drained_when_told_to_stop(opened))
                spare_garbage_collector()
            yield

    app = FastAPIOffline(
        title="Image Gateway",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        telemetry=NO_TELEMETRY,
        redoc_url=None,
        static_url=docs_pages.ASSETS,
        # A redirect would repeat the Host header, which the client controls.
        redirect_slashes=False,
        # Otherwise the page offers the description to an external validator.
        swagger_ui_parameters={"persistAuthorization": False, "filter": True, "validatorUrl": None},
    )
    # Not by `include_router`, which prepares every route again for each application, and matches
    # each request twice.
    for module in (
        *(images, simple, history, hosting, models, usage, requests, tenant),
        *(credentials, health, oauth, tools, admin, docs_pages, assets, console),
    ):
        app.router.routes.extend(module.router.routes)
    describe(app)
    install_error_handlers(app)
    install_sign_in_redirect(app)
    install_limit_page(app)
    # Routes, not a mount: a mount at the root would answer for every unknown path.
    app.router.routes.extend(mcp.routes)
    # Starlette makes the last one added the outermost.
    app.add_middleware(AdmissionControl)
    app.add_middleware(Authentication, tool_scopes=TOOL_SCOPES)
    app.add_middleware(ConsoleGuard)
    app.add_middleware(Instrumentation, traces=traces)
    app.add_middleware(ErrorPages)
    return app


def spare_garbage_collector() -> None:
    """Exclude start-up objects from later collections, and collect less often.

    For a process that only serves, once it is ready. Modules, schemas and routes live as long as
    the process; traversing them for each few hundred new objects took a fifth of a request's time
    (`make bench`).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_NEW_OBJECTS, 20, 50)


def worker_app() -> FastAPI:
    """Build the application of one of several workers, from the environment's settings."""
    settings = load_settings()
    configure_logging(settings.log_level, settings.resolved_log_format)
    end_with_parent(seconds=drain_seconds(settings) + settings.settle_wait_seconds + STOP_SECONDS)
    return create_app(settings)


def leave(gateway: Gateway, signal_number: int, stop: Callable[[], None]) -> None:
    """Begin the shutdown and stop: after SIGTERM, once load balancers have seen /ready fail.

    A second signal, or one from a keyboard, skips that delay.
    """
    seconds = gateway.settings.shutdown_delay_seconds
    waits = signal_number == signal.SIGTERM and not gateway.leaving.is_set() and seconds > 0
    gateway.leaving.set()
    if waits:
        asyncio.get_running_loop().call_later(seconds, stop)
    else:
        stop()


def drain_seconds(settings: Settings) -> float:
    """Return the most seconds that `drain` takes, but for the settlements at its end."""
    return _before_drain_seconds(settings) + settings.drain_seconds


async def drain(gateway: Gateway) -> None:
    """Serve the last requests on open connections, then let paid calls end, and no new ones begin.

    Called when the gateway stops listening.
    """
    await asyncio.sleep(_before_drain_seconds(gateway.settings))
    await gateway.pipeline.drain(gateway.settings.drain_seconds)


def _before_drain_seconds(settings: Settings) -> float:
    seconds = last_seconds(settings)
    return seconds + LATE_SECONDS if seconds else 0.0


@asynccontextmanager
async def _drained_when_told_to_stop(gateway: Gateway) -> AsyncIterator[None]:
    """Drain from the signal on, as `gateway serve` does in one process.

    A worker runs uvicorn's own server, which first waits for its connections and would end slow
    calls before the gateway learned of the signal.
    """
    loop = asyncio.get_running_loop()
    draining: list[asyncio.Task[None]] = []
    servers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def told(number: int, frame: FrameType | None) -> None:
        def stop() -> None:
            if not draining:
                draining.append(asyncio.create_task(drain(gateway)))
            handler = servers[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)

        loop.call_soon_threadsafe(leave, gateway, number, stop)

    for number in servers:
        signal.signal(number, told)
    try:
        yield
    finally:
        for number, handler in servers.items():
            signal.signal(number, handler)
        await asyncio.gather(*draining)
