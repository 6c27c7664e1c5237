"""HTTP/1.1 with bounds, beneath the application, on top of uvicorn's unbounded protocol.

Bounds hold from the first byte, so that TLS, too, begins here and not in the event loop's server.

A request that exceeds a bound is refused in OpenAI's envelope if a response can still be sent; it
is counted in `gateway_connections_refused_total`, and its connection is closed.
"""

import asyncio
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway import telemetry
from gateway.web.connections.bounds import ConnectionBounds
from gateway.web.connections.refusals import ConnectionRefusal, ConnectionRefusals, rendered
from gateway.web.connections.registry import Registry
from gateway.web.connections.tls import Certificate, start_tls

PIECE_BYTES = 16_384
"""The loop delivers up to sixteen times as much at once; bounds are checked after each piece."""
LINGER_SECONDS = 1.0
"""Closing at once, with unread bytes, would reset the connection and lose the refusal."""
FREE_FRAMING_BYTES = 16_384
BODY_BYTES_PER_FRAMING_BYTE = 4
"""Body bytes per framing byte of a chunked body, after the first `FREE_FRAMING_BYTES` of framing.

Each chunk costs the event loop some microseconds, whatever its size.
"""
# RFC 9112, section 3.2, with the names that DNS and containers have; one address, or IPv6 in [].
_HOST = re.compile(rb"(?:[A-Za-z0-9_~-][A-Za-z0-9._~-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_WATCHED = frozenset({b"expect", b"host"})


class BoundedConfig(uvicorn.Config):
    """uvicorn's configuration with this protocol; `load` adds what belongs to one process.

    `tls_files`: the PEM files of certificate chain and key; None serves plain HTTP.
    """

    registry: Registry
    certificate: Certificate | None

    def __init__(
        self,
        app: Any,  # noqa: ANN401 - passed on to uvicorn, as the options are
        *,
        bounds: ConnectionBounds,
        tls_files: tuple[Path, Path] | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        # No route is a WebSocket's, and uvicorn's WebSocket protocol would enforce no bounds.
        super().__init__(app, http=BoundedProtocol, ws="none", log_config=None, **options)
        self._bounds = bounds
        self._tls_files = tls_files

    def load(self) -> None:
        """Load the application and the certificate, in the process that serves them.

        Raises:
            ConfigurationError: the certificate cannot be used.
        """
        super().load()
        self.registry = Registry(self._bounds)
        self.certificate = None if self._tls_files is None else Certificate(*self._tls_files)


class _Exceeded(Exception):
    """Raised in a parser callback to refuse its input."""


class _ResponseTransport(asyncio.Transport):
    """The transport of one response: the head is sent together with the first part of the body.

    That saves a system call and a packet. A head whose body is not ready is sent alone, at the
    loop's next iteration.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        self._has_begun = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if not self._has_begun:
            self._has_begun = True
            self._head = data
            self._loop.call_soon(self.send_head)
        elif self._head is None:
            self._transport.write(data)
        else:
            head, self._head = self._head, None
            self._transport.writelines((head, data))

    def send_head(self) -> None:
        """Send the head now, if it is still pending."""
        head, self._head = self._head, None
        if head is not None and not self._transport.is_closing():
            self._transport.write(head)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self.send_head()
        self._transport.close()


class BoundedProtocol(HttpToolsProtocol):
    """The connection of one client."""

    def __init__(self, config: uvicorn.Config, **options: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(config, **options)
        if not isinstance(config, BoundedConfig):
            raise TypeError("BoundedProtocol needs a BoundedConfig, which holds its bounds.")
        self._registry = config.registry
        self._bounds = config.registry.bounds
        self._refusals = config.registry.refusals
        self._problem: ConnectionRefusal | None = None
        self._is_refused = False
        self._has_deadline = True
        # The head, from its first byte until its headers are complete.
        self._has_head_begun = False
        self._head_bytes = 0
        self._hosts = 0
        # The body, until the message is complete.
        self._is_in_body = False
        self._body_bytes = 0
        self._framing_bytes = 0
        self._taking: asyncio.TimerHandle | None = None
        self._answer: _ResponseTransport | None = None
        self._certificate = config.certificate
        self._handshake: asyncio.Task[None] | None = None
        # What arrives before the handshake's task goes on: of the handshake, and then of a request.
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        host = None if self.client is None else self.client[0]
        refusal = self._registry.admit(self, host, self.loop.time())
        if self._certificate is None:
            if refusal is not None:
                self._refuse(refusal)
        elif refusal is not None:
            self._end(refusal)  # an answer could not be read without TLS
        else:
            self._handshake = self.loop.create_task(self._secure(transport, self._certificate))

    async def _secure(self, transport: asyncio.Transport, certificate: Certificate) -> None:
        """Begin TLS; a client that does not, or not in time, is closed."""
        try:
            secured = await start_tls(
                transport, self, certificate.context, self._early, self._bounds.header_seconds
            )
        except OSError as error:  # TLS errors and timeouts too
            if not self._is_refused:
                self._end(ConnectionRefusals.handshake)
            self._abandon(transport, error)
            return
        finally:
            self._handshake = None
        if self._is_refused:
            self._abandon(transport, None)
            return
        super().connection_made(secured)
        for data in self._early:
            self.data_received(data)
        self._early.clear()

    def _abandon(self, transport: asyncio.Transport, error: OSError | None) -> None:
        """Close a connection whose TLS never began, of whose end the loop does not tell."""
        transport.abort()
        self.connection_lost(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.leave(self)
        if self._taking is not None:
            self._taking.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._handshake is not None:
            self._early.append(data)
            return
        if len(data) <= PIECE_BYTES:
            if not self._is_refused:
                self._feed(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), PIECE_BYTES):
            if self._is_refused:
                return
            self._feed(view[start : start + PIECE_BYTES])
        if self.cycle is not None and self.cycle.response_complete:
            # No reader slows down the rest of this body: yield to other connections.
            self.flow.pause_reading()
            self.loop.call_soon(self._go_on_reading)

    def _go_on_reading(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _feed(self, piece: bytes | memoryview) -> None:
        had_head_begun, was_in_body = self._has_head_begun, self._is_in_body
        body_bytes, cycle = self._body_bytes, self.cycle
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            pass  # an offer that a server may ignore (RFC 9110, section 7.8)
        except httptools.HttpParserError:
            self._refuse(self._problem or ConnectionRefusals.malformed)
            return
        if self._has_head_begun:
            if had_head_begun or not (was_in_body or self.cycle is not cycle):
                self._head_bytes += len(piece)
            else:
                self._head_bytes = (
                    1  # the piece began with another request: the share of each is unknown
                )
            if self._head_bytes > self._bounds.header_bytes:
                self._refuse(self._refusals.header_bytes)
            elif len(self.headers) > self._bounds.headers:
                self._refuse(self._refusals.headers)
            elif not self._has_deadline:
                self._has_deadline = True
                self._registry.expect(self, self.loop.time())
        elif was_in_body and self._is_in_body and self.cycle is cycle:
            self._framing_bytes += len(piece) - (self._body_bytes - body_bytes)
            allowed = FREE_FRAMING_BYTES + self._body_bytes // BODY_BYTES_PER_FRAMING_BYTE
            if self._framing_bytes > allowed:
                self._refuse(self._refusals.framing)

    # The parser's callbacks. They run for every request, so they are kept short.

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self._bounds.pipelined:
            raise self._exceeded(ConnectionRefusals.pipelined)
        self._unset_keepalive_if_required()
        self._registry.becomes_busy(self)
        self._has_head_begun = True
        self._head_bytes = self._hosts = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self._bounds.url_bytes:
            raise self._exceeded(self._refusals.url)

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _WATCHED or self._is_in_body:
            self._watch(name, value)
        else:
            self.headers.append((name, value))

    def _watch(self, name: bytes, value: bytes) -> None:
        if self._is_in_body:
            return  # a trailer: added to the headers, it could replace one of them
        self.headers.append((name, value))
        if name == b"expect":
            self.expect_100_continue |= value.lower() == b"100-continue"
        elif is_host(value):
            self._hosts += 1
        else:
            raise self._exceeded(ConnectionRefusals.host)

    def on_headers_complete(self) -> None:
        if len(self.headers) > self._bounds.headers:
            raise self._exceeded(self._refusals.headers)
        # A head that came in one piece is at most PIECE_BYTES long.
        if (self._head_bytes or self._bounds.header_bytes < PIECE_BYTES) and sum(
            len(name) + len(value) for name, value in self.headers
        ) > self._bounds.header_bytes:
            raise self._exceeded(self._refusals.header_bytes)
        if self._hosts != 1 and (self._hosts or self.parser.get_http_version() == "1.1"):
            raise self._exceeded(ConnectionRefusals.host)
        self._has_head_begun = False
        self._is_in_body = True
        self._body_bytes = self._framing_bytes = 0
        if self._has_deadline:
            self._has_deadline = False
            self._registry.came(self)
        super().on_headers_complete()
        self._answer = self.cycle.transport = _ResponseTransport(self.transport, self.loop)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_body = False
        if self._has_deadline:  # the rest of a body that came after its answer
            self._has_deadline = False
            self._registry.came(self)
            self._registry.becomes_idle(self, self.loop.time())
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._answer is not None:
            self._answer.send_head()  # of an answer without a body
        super().on_response_complete()
        if self.transport.is_closing() or not self.cycle.response_complete:
            return
        if self._is_in_body:
            self._has_deadline = True
            self._registry.expect(self, self.loop.time())
        elif not self._has_head_begun:
            self._registry.becomes_idle(self, self.loop.time())

    # Closing.

    def shutdown(self) -> None:
        """Close the connection when it is idle, but not before the bounds' `last_seconds`."""
        if self._bounds.last_seconds:
            self.loop.call_later(self._bounds.last_seconds, super().shutdown)
        else:
            super().shutdown()

    def overdue(self) -> None:
        """Close a connection whose request, or the rest of whose body, missed its deadline."""
        self._has_deadline = False
        if self._has_head_begun:
            self._refuse(self._refusals.too_slow)
        else:
            self._end(
                ConnectionRefusals.body_unread if self._is_in_body else ConnectionRefusals.silent
            )

    def give_way(self) -> None:
        """Close an idle connection."""
        self._end(ConnectionRefusals.gave_way)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._taking is not None:
            self._taking.cancel()

    def _watch_writing(self) -> None:
        """Limit the time that a client takes to read each part of its answer."""
        untaken_bytes = self.transport.get_write_buffer_size()

        def check() -> None:
            if self.transport.get_write_buffer_size() < untaken_bytes:
                self._watch_writing()
                return
            telemetry.connections_refused_total.labels(ConnectionRefusals.not_taken.counted).inc()
            self.transport.abort()

        self._taking = self.loop.call_later(self._bounds.send_seconds, check)

    def _exceeded(self, refusal: ConnectionRefusal) -> _Exceeded:
        """Build the exception that stops the parser; the refusal itself is in `_problem`."""
        self._problem = refusal
        return _Exceeded(refusal.counted)

    def _end(self, refusal: ConnectionRefusal) -> None:
        telemetry.connections_refused_total.labels(refusal.counted).inc()
        self._is_refused = True
        self.transport.close()

    def _refuse(self, refusal: ConnectionRefusal) -> None:
        """Send the refusal and close; if answers are in progress, close without a message."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not self._is_in_body:
                self._finish_answers(refusal)
                return
            if cycle.response_started or len(self.pipeline) > 0:
                self._end(refusal)
                return
            cycle.disconnected = True  # its own body is at fault, so no other answer will follow
            cycle.message_event.set()
        if refusal.error is None or not self._registry.may_linger():
            self._end(refusal)
            return
        telemetry.connections_refused_total.labels(refusal.counted).inc()
        telemetry.errors_total.labels(refusal.error.code, str(refusal.error.status)).inc()
        self._is_refused = True
        self._registry.leave(self)
        self._unset_keepalive_if_required()
        head, body = rendered(refusal.error)
        common = [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        self.transport.write(b"".join([head, *common, b"\r\n", body]))
        self._linger()

    def _finish_answers(self, refusal: ConnectionRefusal) -> None:
        telemetry.connections_refused_total.labels(refusal.counted).inc()
        self._is_refused = True
        self.cycle.keep_alive = False
        self.flow.pause_reading()

    def _linger(self) -> None:
        """Close the sending side, and give the client time to close its own."""
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self._registry.lingering += 1

        def end() -> None:
            self._registry.lingering -= 1
            self.transport.abort()

        self.loop.call_later(LINGER_SECONDS, end)


@lru_cache(maxsize=1024)
def is_host(value: bytes) -> bool:
    """Return True if a Host header is a name or an address, with or without a port."""
    return _HOST.fullmatch(value.strip()) is not None
