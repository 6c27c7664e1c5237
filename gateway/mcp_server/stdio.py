"""The bridge of `gateway mcp-stdio`: a client's MCP messages on stdin and stdout, over HTTP to a
gateway.

Messages pass unchanged, in both protocol eras. The bridge adds only the HTTP part: headers from the
SDK's own table, cancellation by closing the stream, an error for a request without an answer.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import httpx2
from mcp.shared.inbound import MCP_METHOD_HEADER
from mcp.shared.jsonrpc_dispatcher import cancelled_request_id_from_params
from mcp.types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

from gateway.mcp_server.stdio_http import (
    MAX_IN_FLIGHT,
    Problem,
    explain,
    failure,
    http_headers,
    read_body,
    too_large,
)
from gateway.mcp_server.stdio_pipes import OverlongLine, Pipes

REFUSAL_SECONDS = 10.0
BRIDGE_ERROR = -32000
"""The first code that JSON-RPC reserves for implementations; `data.code` is more specific."""
NO_MESSAGE = Problem("invalid_message", "A line on stdin is not a single JSON-RPC message.")
TOO_MANY = Problem(
    "too_many_requests",
    f"More than {MAX_IN_FLIGHT} messages are in progress. Wait for some answers.",
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _PendingRequest:
    """A request in progress; `is_modern` if each request names its own protocol version."""

    task: asyncio.Task[None]
    is_modern: bool


class _ClientGoneError(Exception):
    """The client closed a pipe, or the process was told to stop."""


class Bridge:
    """The connection of one local client to the gateway."""

    def __init__(
        self, pipes: Pipes, http: httpx2.AsyncClient, url: str, *, max_bytes: int, say: Say
    ) -> None:
        self._pipes = pipes
        self._http = http
        self._url = url
        self._max_bytes = max_bytes
        self._say = say
        self._said = ""
        self._tasks = asyncio.TaskGroup()
        self._calls: dict[RequestId, _PendingRequest] = {}
        self._notices: set[asyncio.Task[None]] = set()
        self._answers: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self._negotiated: str | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until the client closes a pipe or `stop` is set.

        The gateway settles the calls that are then in progress.
        """
        try:
            async with self._tasks:
                for work in (self._read(), self._write(), self._await(stop)):
                    self._tasks.create_task(work)
        except* _ClientGoneError:
            pass

    async def _await(self, stop: asyncio.Event) -> None:
        await stop.wait()
        raise _ClientGoneError

    async def _write(self) -> None:
        while True:
            try:
                await self._pipes.write(await self._answers.get())
            except OSError:
                raise _ClientGoneError from None

    async def _read(self) -> None:
        while line := await self._pipes.read():
            if isinstance(line, OverlongLine):
                await self._refuse(
                    line.request_id, too_large("message", self._max_bytes), INVALID_REQUEST
                )
            elif line.strip():
                await self._accept(line)
        raise _ClientGoneError

    async def _accept(self, line: bytes) -> None:
        message = parse_message(line)
        if message is None:
            await self._refuse(None, NO_MESSAGE, PARSE_ERROR)
        elif isinstance(message, JSONRPCNotification) and _is_cancellation(message):
            self._cancel(message, line)
        elif len(self._calls) + len(self._notices) < MAX_IN_FLIGHT:
            self._start(message, line)
        elif isinstance(message, JSONRPCRequest):
            await self._refuse(message.id, TOO_MANY)
        else:
            self._report(TOO_MANY)

    def _start(self, message: JSONRPCMessage, line: bytes) -> None:
        headers = http_headers(message, self._negotiated)
        if not isinstance(message, JSONRPCRequest):
            notice = self._tasks.create_task(self._notify(line, headers))
            self._notices.add(notice)
            notice.add_done_callback(self._notices.discard)
            return
        # As in the SDK: if a client reuses an id, it waits for the later request only.
        if earlier := self._calls.get(message.id):
            earlier.task.cancel()
        task = self._tasks.create_task(self._call(message.id, message.method, line, headers))
        self._calls[message.id] = call = _PendingRequest(
            task, is_modern=MCP_METHOD_HEADER in headers
        )
        task.add_done_callback(lambda _: self._forget(message.id, call))

    def _forget(self, request_id: RequestId, call: _PendingRequest) -> None:
        if self._calls.get(request_id) is call:
            del self._calls[request_id]

    def _cancel(self, message: JSONRPCNotification, line: bytes) -> None:
        """Close the stream of the request that the client cancelled.

        In the modern era closing is the cancellation. Earlier eras send a message, which a
        stateless gateway cannot relate to a request, so closing the stream ends the wait there too.
        """
        request_id = cancelled_request_id_from_params(message.params)
        call = None if request_id is None else self._calls.pop(request_id, None)
        if call is None:
            return  # its answer and the cancellation crossed
        if not call.is_modern:
            self._start(message, line)
        call.task.cancel()

    async def _call(
        self, request_id: RequestId, method: str, line: bytes, headers: dict[str, str]
    ) -> None:
        try:
            async with self._http.stream(
                "POST", self._url, content=line, headers=headers
            ) as response:
                problem = await self._relay(response, request_id, method)
        except httpx2.HTTPError as error:
            problem = self._failure(error, method)
        if problem is not None:
            await self._refuse(request_id, problem)

    async def _notify(self, line: bytes, headers: dict[str, str]) -> None:
        try:
            async with self._http.stream(
                "POST", self._url, content=line, headers=headers
            ) as response:
                if not response.is_success:
                    body = await read_body(response, self._max_bytes)
                    self._report(explain(response, body or b"", self._url))
        except httpx2.HTTPError as error:
            self._report(self._failure(error, "notification"))

    async def _relay(
        self, response: httpx2.Response, request_id: RequestId, method: str
    ) -> Problem | None:
        """Pass on the gateway's answer, as JSON or as a stream of events."""
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.is_success and media_type == "text/event-stream":
            async for event in httpx2.EventSource(response, max_event_size=self._max_bytes):
                if event.event == "message" and event.data:
                    content = event.data.encode()
                    if await self._deliver(content, request_id, method):
                        return None
            return self._failure(httpx2.ReadError("the stream ended"), method)
        body = await read_body(response, self._max_bytes)
        if body is None:
            return too_large("answer", self._max_bytes)
        if media_type == "application/json" and await self._deliver(body, request_id, method):
            return None
        return explain(response, body, self._url)

    async def _deliver(self, content: bytes, request_id: RequestId, method: str) -> bool:
        """Pass one message to the client; return True if it answers the request."""
        message = parse_message(content)
        if message is None:
            return False
        if isinstance(message, JSONRPCError) and message.id is None:
            # Refused before the gateway had read the request's id.
            message.id = request_id
            content = _encode(message)
        if isinstance(message, JSONRPCResponse | JSONRPCError):
            is_answer = True
            if message.id != request_id:
                return False
        else:
            is_answer = False
        if method == "initialize" and isinstance(message, JSONRPCResponse):
            self._negotiated = str(message.result.get("protocolVersion", "")) or None
        self._said = ""
        # Line breaks can only occur between JSON's tokens.
        await self._answers.put(content.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n")
        return is_answer

    async def _refuse(
        self, request_id: RequestId | None, problem: Problem, code: int = BRIDGE_ERROR
    ) -> None:
        self._report(problem)
        await self._answers.put(error_line(request_id, problem, code))

    def _failure(self, error: httpx2.HTTPError, method: str) -> Problem:
        return failure(error, method, self._url, self._max_bytes)

    def _report(self, problem: Problem) -> None:
        """Log a problem once, not again for every request of a client that keeps trying."""
        if problem.message != self._said:
            self._said = problem.message
            self._say(problem.message)


def parse_message(content: bytes) -> JSONRPCMessage | None:
    """Parse a message; None if it is invalid."""
    try:
        return jsonrpc_message_adapter.validate_json(content, by_name=False)
    except ValidationError:
        return None


def _is_cancellation(message: JSONRPCNotification) -> bool:
    return message.method == "notifications/cancelled"


def error_line(request_id: RequestId | None, problem: Problem, code: int = BRIDGE_ERROR) -> bytes:
    """Serialize the JSON-RPC error that tells a client of a problem."""
    data = {"code": problem.code}
    error = ErrorData(code=code, message=problem.message, data=data)
    return _encode(JSONRPCError(jsonrpc="2.0", id=request_id, error=error)) + b"\n"


def _encode(message: JSONRPCError) -> bytes:
    return message.model_dump_json(by_alias=True, exclude_unset=True).encode()


async def refuse_client(pipes: Pipes, message: str, stop: asyncio.Event) -> None:
    """Answer a client's requests with the problem, since it may not show stderr.

    Ends with the client, or when it has sent nothing for a while.
    """
    problem = Problem("not_configured", message)
    stopped = asyncio.ensure_future(stop.wait())
    while not stopped.done():
        reading = asyncio.ensure_future(pipes.read())
        await asyncio.wait(
            {reading, stopped}, timeout=REFUSAL_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if not reading.done() or not (line := reading.result()):
            break
        request = None if isinstance(line, OverlongLine) else parse_message(line)
        if isinstance(request, JSONRPCRequest):
            with suppress(OSError):  # a client that has gone needs no answer
                await pipes.write(error_line(request.id, problem))
    stopped.cancel()
