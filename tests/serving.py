"""Serving an application on loopback, in this process."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import uvicorn

from gateway.config import Settings
from gateway.web.connections.bounds import ConnectionBounds
from gateway.web.connections.protocol import BoundedConfig

CLOSE_SECONDS = 60


@asynccontextmanager
async def serving(
    app: Any,
    *,
    lifespan: Literal["on", "off"] = "off",
    port: int = 0,
    bounds: ConnectionBounds | None = None,
) -> AsyncIterator[str]:
    """Serve until the end of the block; the address it listens on.

    With the connections' bounds that are given, or those of a gateway without settings.
    """
    # With the protocol named, asyncio sends small answers at once.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", port))
    bounds = bounds or ConnectionBounds.of(Settings(_env_file=None))  # type: ignore[call-arg]
    config = BoundedConfig(app, bounds=bounds, access_log=False, lifespan=lifespan)
    config.load()
    # Startup and shutdown without what waits in between: for signals, ten times a second, and a
    # tenth of a second for connections that have none to wait for.
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    assert server.started
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for bound in server.servers:
            bound.close()
        listener.close()
        connections = server.server_state.connections
        for connection in list(connections):
            connection.shutdown()
        async with asyncio.timeout(CLOSE_SECONDS):
            while connections or server.server_state.tasks:  # noqa: ASYNC110 - uvicorn sends no event
                await asyncio.sleep(0)
        await server.lifespan.shutdown()
