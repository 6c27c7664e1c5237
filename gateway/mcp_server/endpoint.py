"""The ASGI application at /mcp, in front of the protocol: POST only, bounded bodies, per-tenant
shares.

The protocol's library keeps a body in memory while its call runs, and an answer until the client
has read it. So few large ones are admitted at a time, and slow clients are timed out.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, aclosing
from http import HTTPStatus

import structlog
from anyio import CancelScope
from anyio.lowlevel import checkpoint

from gateway.config import Settings
from gateway.domain import Caller
from gateway.errors import GatewayError, IncompleteBody
from gateway.load.concurrency import Bulkhead
from gateway.mcp_server.bodies import MessageBody, read_message
from gateway.mcp_server.calls import ARGUMENTS_STATE
from gateway.web.admission import as_json_rpc
from gateway.web.bodies import LARGE_BODY_BYTES, body_parts
from gateway.web.instrumentation import App, Message, Receive, RequestScope, Send, send_error

log = structlog.get_logger(__name__)

READ_RESOURCE = "resources/read"
"""The method whose answer may contain a whole image."""
TOO_LARGE_ADVICE = " Refer to large images by an https link or generated-images://…."
ServeBody = Callable[[RequestScope, bytes, Receive, Send], Awaitable[None]]
"""Serve a request whose body has been read."""


class McpEndpoint:
    """Reads and bounds a request's body, then passes the request to the protocol's library."""

    def __init__(self, serve: ServeBody, settings: Settings, *, max_body_bytes: int) -> None:
        self._serve = serve
        self._settings = settings
        self._max_body_bytes = max_body_bytes
        self._slots = Bulkhead(settings.max_concurrent_mcp_requests, "MCP requests")
        self._large_slots = Bulkhead(
            settings.max_concurrent_large_mcp_requests, "large MCP requests"
        )

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Serve one request. GET and DELETE are refused: the server has no sessions."""
        if scope["method"] != "POST":
            await refuse_method(send, allowed="POST")
            return
        with ExitStack() as slots:
            try:
                body = await self._read(scope, receive, slots)
            except IncompleteBody:
                return  # no one to answer; the request record tells that the client left
            except GatewayError as error:
                await send_error(error, send, content=as_json_rpc(error))
                return
            scope["state"][ARGUMENTS_STATE] = body.arguments
            with CancelScope() as serving:
                in_time = sending_in_time(send, self._settings.mcp_send_seconds, serving)
                await self._serve(scope, body.content, receive, in_time)

    async def _read(self, scope: RequestScope, receive: Receive, slots: ExitStack) -> MessageBody:
        """Read the body. The slots stay taken until `slots` closes."""
        caller: Caller = scope["state"]["caller"]
        slots.enter_context(self._slots.taken(caller.tenant_id))
        content, is_large = bytearray(), False
        parts = body_parts(
            scope,
            receive,
            max_bytes=self._max_body_bytes,
            seconds=self._settings.upload_seconds,
            advice=TOO_LARGE_ADVICE,
        )
        async with aclosing(parts):
            async for part in parts:
                content += part
                if not is_large and len(content) > LARGE_BODY_BYTES:
                    slots.enter_context(self._large_slots.taken(caller.tenant_id))
                    is_large = True
        body = await read_message(content)
        if body.method == READ_RESOURCE and not is_large:
            slots.enter_context(self._large_slots.taken(caller.tenant_id))
        return body


def replaying(app: App) -> ServeBody:
    """Adapt an ASGI application, which receives the body, to be given it."""

    async def serve(scope: RequestScope, body: bytes, receive: Receive, send: Send) -> None:
        await app(scope, replay(body, receive), send)

    return serve


def sending_in_time(send: Send, seconds: float, serving: CancelScope) -> Send:
    """Wrap `send` to give up on a client that reads nothing for this many seconds.

    The work is cancelled from outside: an exception would be logged by the library with a
    traceback.
    """

    async def send_in_time(message: Message) -> None:
        try:
            async with asyncio.timeout(seconds):
                await send(message)
        except TimeoutError:
            log.warning("mcp_client_does_not_read", seconds=seconds)
            serving.cancel()
            await checkpoint()

    return send_in_time


def replay(body: bytes, receive: Receive) -> Receive:
    """Build a `receive` that returns the body in one piece, then the messages after it."""
    kept = [body]

    async def replayed() -> Message:
        if kept:
            return {"type": "http.request", "body": kept.pop(), "more_body": False}
        return await receive()

    return replayed


async def refuse_method(send: Send, *, allowed: str) -> None:
    """Answer 405, with the allowed method."""
    await send(
        {
            "type": "http.response.start",
            "status": HTTPStatus.METHOD_NOT_ALLOWED,
            "headers": [(b"allow", allowed.encode()), (b"content-length", b"0")],
        }
    )
    await send({"type": "http.response.body"})
