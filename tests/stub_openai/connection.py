"""HTTP/1.1 on a raw socket, so that answers can be cut, reset or withheld at any byte."""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import cast

import httptools

from tests.stub_openai.errors import ApiError
from tests.stub_openai.rendering import Answer, render_error
from tests.stub_openai.state import State

CONTROL_PREFIX = "/_stub/"

Work = Coroutine[None, None, None]
Serve = Callable[["Connection", "Request"], Work | None]

_JOIN_BELOW_BYTES = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Request:
    """One request as read from the socket."""

    method: str
    path: str
    query: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    keep_alive: bool


class Connection(asyncio.Protocol):
    """One client connection; its requests are answered one after another."""

    def __init__(self, state: State, serve_api: Serve, serve_control: Serve) -> None:
        self._state = state
        self._serve_api = serve_api
        self._serve_control = serve_control
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Request] = deque()
        self._busy = False
        self._receiving = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._lost: asyncio.Future[None] | None = None
        self._gone = False

    # Callbacks of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's, hence the cast.
        self._transport = cast("asyncio.Transport", transport)
        self._state.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._state.connections.discard(self)
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if not self._receiving and b" /_stub/" not in data[:64] and self._closes_unread():
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.send(render_error(ApiError(400, "Bad request."), "req_unparsed"))
            self.close()

    # Callbacks of httptools

    def on_message_begin(self) -> None:
        self._receiving = True
        self._url = b""
        self._headers = []
        self._body = []
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        if len(name) == 6 and name.lower() == b"expect" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._state.config.max_body_bytes:
            self.reset()
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self._receiving = False
        path, _, query = self._url.partition(b"?")
        request = Request(
            self._parser.get_method().decode("latin-1"),
            path.decode("latin-1"),
            query.decode("latin-1"),
            self._headers,
            self._body[0] if len(self._body) == 1 else b"".join(self._body),
            self._parser.should_keep_alive(),
        )
        self._body = []
        self._waiting.append(request)
        self._serve_next()

    # The interface for the rest of the stub

    @property
    def is_open(self) -> bool:
        return not self._gone and self._transport is not None and not self._transport.is_closing()

    def send(self, answer: Answer) -> None:
        """Write a whole answer; do nothing if the connection is gone."""
        self.write(answer.head, *answer.body)

    def write(self, *pieces: bytes) -> None:
        if self._transport is None or not self.is_open:
            return
        if sum(map(len, pieces)) < _JOIN_BELOW_BYTES:
            self._transport.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)

    async def flushed(self) -> None:
        """Yield until small writes have left: uvloop sends them at the end of a loop turn."""
        for _ in range(100):
            await asyncio.sleep(0)
            if self._transport is None or not self._transport.get_write_buffer_size():
                break
        await asyncio.sleep(0)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Close with a TCP reset (RST) instead of an orderly end."""
        if self._transport is None or self._gone:
            return
        wire = self._transport.get_extra_info("socket")
        if wire is not None:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    async def lost(self) -> None:
        """Return when the client has gone away."""
        if self._gone:
            return
        self._lost = asyncio.get_running_loop().create_future()
        await self._lost

    def _closes_unread(self) -> bool:
        if not self._state.faults.take_unread():
            return False
        self._state.arrive()
        self._state.record(method="", path="")
        self._state.leave()
        self.close()
        return True

    def _serve_next(self) -> None:
        while self._waiting and not self._busy:
            request = self._waiting.popleft()
            self._busy = True
            control = request.path.startswith(CONTROL_PREFIX)
            work = (self._serve_control if control else self._serve_api)(self, request)
            if work is None:
                self._finish(request)
                continue
            task = asyncio.get_running_loop().create_task(self._run(request, work))
            tasks = self._state.control_tasks if control else self._state.tasks
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _run(self, request: Request, work: Work) -> None:
        try:
            await work
        except asyncio.CancelledError:
            self.reset()
            raise
        finally:
            self._finish(request)
            self._serve_next()

    def _finish(self, request: Request) -> None:
        self._busy = False
        if not request.keep_alive:
            self.close()
