"""The HTTP+SSE transport of protocol version 2024-11-05, for clients that know nothing newer.

A client opens the stream, learns from its first event where to post messages, and reads every
answer from the stream. A session lives in the process that holds its stream, and belongs to the
key that opened it; each message is authenticated and admitted as a request of its own.
"""

import asyncio
from contextlib import suppress
from dataclasses import replace
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
from gateway.domain import Caller
from gateway.errors import InvalidRequest, Unavailable
from gateway.load.concurrency import Places
from gateway.mcp_server.bodies import LARGE_BODY_BYTES
from gateway.mcp_server.calls import Context, opened_gateway, request_of
from gateway.mcp_server.endpoint import (
    EndpointLimits,
    McpEndpoint,
    in_time,
    refuse_method,
    replay,
)
from gateway.request_record import RequestRecord, current, set_current
from gateway.web.admission import as_json_rpc
from gateway.web.instrumentation import Message, Receive, RequestScope, Send, send_error
from gateway.web.routes import SSE_MESSAGES_PATH, SSE_PATH

GOODBYE_SECONDS = 1.0
RECORD_STATE = "mcp_record"
"""Where a message's state holds the record of its request."""


class SseFront:
    """Streams and messages of the old transport; `server` is for it alone."""

    def __init__(
        self,
        server: Server,
        limits: EndpointLimits,
        security: TransportSecuritySettings,
        *,
        max_streams: int,
    ) -> None:
        server.middleware.append(self._run_in_turn)
        self._server = server
        self._limits = limits
        self._streams = Places(max_streams, "MCP event streams")
        self._calls = Places(limits.max_concurrent, "MCP requests")
        self._security = TransportSecurityMiddleware(security)
        self._transport = SseServerTransport(
            SSE_MESSAGES_PATH, security_settings=security, max_request_body_size=LARGE_BODY_BYTES
        )
        # Answered before its call runs, a message must not keep more than this in memory.
        small = replace(limits, max_body_bytes=min(limits.max_body_bytes, LARGE_BODY_BYTES))
        self.routes = [
            Route(SSE_PATH, endpoint=_Stream(self)),
            Route(SSE_MESSAGES_PATH, endpoint=McpEndpoint(self._post, small)),
        ]

    async def stream(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Serve one client for as long as it listens, or until the gateway is told to stop."""
        caller: Caller = scope["state"]["caller"]
        refusal = await self._security.validate_request(Request(scope, receive), is_post=False)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        _leave_place(scope)
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
                    scope, receive, in_time(send, self._limits.send_seconds, serving)
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

    async def _post(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        content = (await receive())["body"]
        try:
            message = jsonrpc_message_adapter.validate_json(content, by_name=False)
        except ValidationError:
            # The library would log it with its traceback, and the prompt in it.
            error = InvalidRequest("The body is no JSON-RPC message.", code="invalid_json")
            await send_error(error, send, content=as_json_rpc(error))
            return
        _leave_place(scope)
        scope["user"] = _owner(scope)
        record = current()
        scope["state"][RECORD_STATE] = record if isinstance(message, JSONRPCRequest) else None
        if not isinstance(message, JSONRPCRequest):
            await self._transport.handle_post_message(scope, replay(content, receive), send)
            return
        # The record waits for the call, which outlives the answer to its message.
        record.hold()
        is_accepted = False

        async def note_status(answer: Message) -> None:
            nonlocal is_accepted
            is_accepted |= answer.get("status") == HTTPStatus.ACCEPTED
            await send(answer)

        try:
            await self._transport.handle_post_message(scope, replay(content, receive), note_status)
        except (BrokenResourceError, ClosedResourceError):
            record.release()  # the client has closed its stream
        else:
            if not is_accepted:
                record.release()

    async def _run_in_turn(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Bound the calls that run: their messages have been answered already."""
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


class _Stream:
    """The stream's route; a class, so that the framework passes everything on."""

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


def _leave_place(scope: RequestScope) -> None:
    """Let the next request in: this one waits for its client, its calls for places of their own."""
    place, scope["state"]["place"] = scope["state"]["place"], None
    if place is not None:
        place.leave()


def _owner(scope: RequestScope) -> AuthenticatedUser:
    """The caller as the library compares the one of a session with the one of a message."""
    caller: Caller = scope["state"]["caller"]
    subject = f"{caller.api_key_id}/{caller.user_id}/{caller.livemode}"
    return AuthenticatedUser(
        AccessToken(token="", client_id=str(caller.tenant_id), scopes=[], subject=subject)
    )
