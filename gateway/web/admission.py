"""Admission control: bounded concurrency with a fair, bounded queue, else 503.

After authentication, so that tenants take turns, and before routes and bodies. Operators and
requests without a key are always admitted. A slot is left at the provider call or with the answer;
a request that waits for its client, for images or for a provider has none, and takes another later.
"""

import asyncio
from collections import deque
from functools import cache
from typing import Any
from uuid import UUID

import orjson

from gateway.bootstrap import Gateway
from gateway.domain import Caller
from gateway.errors import GatewayError, Unavailable, envelope, response_headers
from gateway.load.gate import Gate, GateSlot, set_current_slot
from gateway.request_record import note_error
from gateway.tracing import step
from gateway.web.bodies import LARGE_BODY_BYTES
from gateway.web.instrumentation import App, Message, Receive, RequestScope, Send
from gateway.web.routes import AdmissionClass, find_route

BODY_PATIENCE_SECONDS = 0.25
WAITING_BODY_BYTES = 65_536
"""The part of a body that is read while its request waits: a thousand may wait."""
JSON_RPC_ERRORS = {True: -32600, False: -32603}
"""Invalid request, where it is the client's fault; internal error (JSON-RPC 2.0, section 5.1)."""


class AdmissionControl:
    """The middleware; the pipeline takes the slot it sets from the context."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Pass the request on with its slot, or refuse it at once."""
        state = scope.get("state", {})
        caller = state.get("caller")
        if not isinstance(caller, Caller):
            await self._app(scope, receive, send)
            return
        gateway: Gateway = state["gateway"]
        client = _Client(receive, send)
        try:
            with step("admission"):
                slot = await _enter(gateway, caller, scope["path"], client)
        except Unavailable as error:
            await _refuse(error, scope, send)
            return
        if slot is None:
            await self._app(scope, receive, send)
            return
        client.slot = slot
        set_current_slot(slot)
        try:
            await self._app(scope, client.receive, client.send)
        finally:
            slot.leave()
            set_current_slot(None)


class _Client:
    """The request's client: its slot must not be kept by waiting for it."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._kept: deque[Message] = deque()
        self._received_bytes = 0
        self._patience_seconds = BODY_PATIENCE_SECONDS
        self._has_come = False
        self.slot: GateSlot | None = None

    async def receive(self) -> Message:
        """The next part of the body; the slot is left where it is slow, or large."""
        if self._kept:
            return self._kept.popleft()
        if self._has_come or self.slot is None:
            return await self._receive()
        loop = asyncio.get_running_loop()
        began = loop.time()
        patience = loop.call_later(self._patience_seconds, self.slot.leave)
        try:
            message = await self._receive()
        finally:
            patience.cancel()
        # For the whole body: who sends a byte now and then is slow too.
        self._patience_seconds = max(0.0, self._patience_seconds - (loop.time() - began))
        self._take_note(message)
        if self._received_bytes > LARGE_BODY_BYTES:
            self.slot.leave()
        return message

    async def send(self, message: Message) -> None:
        """Send the answer, with which the slot is left."""
        if self.slot is not None and message["type"] == "http.response.body":
            self.slot.leave()
        await self._send(message)

    async def leaves(self) -> None:
        """Return when the client has left; what it sends before is kept for `receive`."""
        while self._received_bytes <= WAITING_BODY_BYTES:
            message = await self._receive()
            self._kept.append(message)
            self._take_note(message)
            if message["type"] == "http.disconnect":
                return
        await asyncio.Event().wait()  # the rest is read once it is admitted

    def _take_note(self, message: Message) -> None:
        self._received_bytes += len(message.get("body", b""))
        self._has_come = not message.get("more_body", False)


async def _enter(gateway: Gateway, caller: Caller, path: str, client: _Client) -> GateSlot | None:
    """The request's slot; None for uploads, which get theirs in the pipeline.

    Raises:
        Unavailable: there is none, and none for what would be bought.
    """
    needed = find_route(path).admission
    if needed is not AdmissionClass.ORDINARY:
        gateway.pipeline.check_room(caller)
    if needed is AdmissionClass.UPLOAD:
        gateway.gate.check(caller.tenant_id)
        return None
    slot = gateway.gate.take(caller.tenant_id)
    return slot or await _wait(gateway.gate, caller.tenant_id, client)


async def _wait(gate: Gate, tenant_id: UUID, client: _Client) -> GateSlot:
    """A slot, after a wait.

    Raises:
        Unavailable: the wait is too long, or the client has left meanwhile.
    """
    joined = gate.join(tenant_id)
    leaving = asyncio.create_task(client.leaves())
    first: set[asyncio.Future[Any]] = {joined, leaving}
    is_let_in = False
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            raise Unavailable("The client has left.")
        is_let_in = True
        return joined.result()
    finally:
        leaving.cancel()
        if not is_let_in:
            gate.abandon(tenant_id, joined)


async def _refuse(error: Unavailable, scope: RequestScope, send: Send) -> None:
    note_error(error)
    status, headers, body = _refusal(
        error.message, error.retry_after_seconds, find_route(scope["path"]).speaks_json_rpc
    )
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@cache  # there are few, and each may be needed thousands of times a second
def _refusal(
    message: str,
    seconds: int | None,
    for_mcp: bool,  # noqa: FBT001 - a key of the cache
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    error = Unavailable(message, retry_after_seconds=seconds)
    body = orjson.dumps(as_json_rpc(error) if for_mcp else envelope(error))
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers |= response_headers(error)
    return error.status, [(k.lower().encode(), v.encode()) for k, v in headers.items()], body


def as_json_rpc(error: GatewayError) -> dict[str, object]:
    """An error as MCP says it before it knows which request it was: clients show the message."""
    data = envelope(error)["error"]
    code = JSON_RPC_ERRORS[error.status < GatewayError.status]
    said = {"code": code, "message": f"{error.code}: {error.message}", "data": data}
    return {"jsonrpc": "2.0", "id": None, "error": said}
