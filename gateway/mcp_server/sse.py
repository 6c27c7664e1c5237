"""The HTTP+SSE transport of protocol version 2024-11-05, for clients without a newer one.

A client opens the stream, reads from its first event the address for messages, and receives every
answer on the stream. A session belongs to the process that holds its stream and to the key that
opened it; each message is authenticated and admitted as a separate request.
"""

import asyncio
from contextlib import suppress
from http import HTTPStatus

from anyio import BrokenResourceError, CancelScope, ClosedResourceError
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.context import CallNext, HandlerResult
from mcp.server.lowlevel import Server
from mcp.server.sse import SseServerTransport
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from mcp.types import JSONRPCRequest, jsonrpc_message_adapter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.routing import Route

from gateway.bootstrap import Gateway
from gateway.config import Settings
from gateway.domain import Caller
from gateway.errors import InvalidRequest, Unavailable
from gateway.load.concurrency import Bulkhead
from gateway.load.gate import leave_current_slot
from gateway.mcp_server.calls import Context, opened_gateway, request_of
from gateway.mcp_server.endpoint import (
    McpEndpoint,
    refuse_method,
    replay,
    sending_in_time,
)
from gateway.request_record import RequestRecord, current, set_current
from gateway.web.admission import as_json_rpc
from gateway.web.bodies import LARGE_BODY_BYTES
from gateway.web.instrumentation import Message, Receive, RequestScope, Send, send_error
from gateway.web.routes import SSE_MESSAGES_PATH, SSE_PATH

GOODBYE_SECONDS = 1.0
RECORD_STATE = "mcp_record"
"""The key in a message's state for the record of its request."""


class SseFront:
    """Streams and messages of the HTTP+SSE transport; `server` must not serve another."""

    def __init__(
        self,
        server: Server,
        settings: Settings,
        security: TransportSecuritySettings,
    ) -> None:
        server.middleware.append(self._run_in_turn)
        self._server = server
        self._settings = settings
        self._streams = Bulkhead(settings.max_mcp_sse_streams, "MCP event streams")
        self._calls = Bulkhead(settings.max_concurrent_mcp_requests, "MCP requests")
        self._security = TransportSecurityMiddleware(security)
        self._transport = SseServerTransport(
            SSE_MESSAGES_PATH, security_settings=security, max_request_body_size=LARGE_BODY_BYTES
        )
        # A message is answered before its call runs, so it may not keep more than this in memory.
        max_body_bytes = min(settings.max_mcp_body_bytes, LARGE_BODY_BYTES)
        self.routes = [
            Route(SSE_PATH, endpoint=_StreamRoute(self)),
            Route(
                SSE_MESSAGES_PATH,
                endpoint=McpEndpoint(self._post, settings, max_body_bytes=max_body_bytes),
            ),
        ]

    async def stream(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Serve one client until it disconnects or the gateway shuts down."""
        caller: Caller = scope["state"]["caller"]
        refusal = await self._security.validate_request(Request(scope, receive), is_post=False)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        # The stream is idle from here on, and its calls take slots of their own.
        leave_current_slot()
        try:
            with self._streams.taken(caller.tenant_id):
                await self._listen(scope, receive, send)
        except Unavailable as error:
            await send_error(error, send, content=as_json_rpc(error))

    async def _listen(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        gateway: Gateway = scope["state"]["gateway"]
        scope["user"] = _owner(scope)
        with CancelScope() as serving:
            leaving = asyncio.create_task(_cancel_when_leaving(gateway, serving))
            try:
                async with self._transport.connect_sse(
                    scope, receive, sending_in_time(send, self._settings.mcp_send_seconds, serving)
                ) as (read_stream, write_stream):
                    await self._server.run(
                        read_stream, write_stream, self._server.create_initialization_options()
                    )
            finally:
                leaving.cancel()
        if gateway.leaving.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _post(self, scope: RequestScope, body: bytes, receive: Receive, send: Send) -> None:
        try:
            message = jsonrpc_message_adapter.validate_json(body, by_name=False)
        except ValidationError:
            # The library would log it with its traceback, which contains the prompt.
            error = InvalidRequest("The body is not a JSON-RPC message.", code="invalid_json")
            await send_error(error, send, content=as_json_rpc(error))
            return
        leave_current_slot()
        scope["user"] = _owner(scope)
        record = current()
        scope["state"][RECORD_STATE] = record if isinstance(message, JSONRPCRequest) else None
        if not isinstance(message, JSONRPCRequest):
            await self._transport.handle_post_message(scope, replay(body, receive), send)
            return
        # The record stays open for the call, which outlives the answer to its message.
        record.hold()
        is_accepted = False

        async def note_status(answer: Message) -> None:
            nonlocal is_accepted
            is_accepted |= answer.get("status") == HTTPStatus.ACCEPTED
            await send(answer)

        try:
            await self._transport.handle_post_message(scope, replay(body, receive), note_status)
        except (BrokenResourceError, ClosedResourceError):
            record.release()  # the client has closed its stream
        else:
            if not is_accepted:
                record.release()

    async def _run_in_turn(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Bound the concurrent calls, whose messages have been answered already."""
        _, caller = opened_gateway(ctx)
        record: RequestRecord | None = getattr(request_of(ctx).state, RECORD_STATE)
        if record is None:
            return await call_next(ctx)
        set_current(record)
        try:
            with self._calls.taken(caller.tenant_id):
                return await call_next(ctx)
        finally:
            record.release()


class _StreamRoute:
    """The stream's route; a class, because the framework treats it as a plain ASGI application."""

    def __init__(self, front: SseFront) -> None:
        self._front = front

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            await refuse_method(send, allowed="GET")
            return
        await self._front.stream(scope, receive, send)


async def _cancel_when_leaving(gateway: Gateway, serving: CancelScope) -> None:
    await gateway.leaving.wait()
    serving.cancel()


def _owner(scope: RequestScope) -> AuthenticatedUser:
    """The caller in the form that the library compares between session and message."""
    caller: Caller = scope["state"]["caller"]
    subject = f"{caller.api_key_id}/{caller.user_id}/{caller.livemode}"
    return AuthenticatedUser(
        AccessToken(token="", client_id=str(caller.tenant_id), scopes=[], subject=subject)
    )
