"""A cheap closed-loop load generator: keep-alive connections and prepared requests."""

import asyncio
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import httptools

OK = 200
BOUNDARY = "----an-image-of-noise"
RECEIVED_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Load:
    """The result of one run; latencies in milliseconds, sorted."""

    seconds: float
    milliseconds: tuple[float, ...]

    @property
    def per_second(self) -> float:
        """Compute answers per second."""
        return len(self.milliseconds) / self.seconds

    def percentile(self, share: float) -> float:
        """Compute the latency within which this share of answers came."""
        return self.milliseconds[
            min(len(self.milliseconds) - 1, int(len(self.milliseconds) * share))
        ]


def request_bytes(
    host: str, path: str, key: str, body: bytes, *, idempotency_key: str | None = None
) -> bytes:
    """Encode one HTTP/1.1 request."""
    more = "" if idempotency_key is None else f"Idempotency-Key: {idempotency_key}\r\n"
    return (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n{more}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


class _Connection(asyncio.Protocol):
    """A connection that sends the next request as soon as an answer is complete."""

    def __init__(
        self, requests: Iterator[bytes], budget: "_Budget", done: asyncio.Future[None]
    ) -> None:
        self._requests = requests
        self._budget = budget
        self._done = done
        self._status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("closed by the server"))

    def on_message_complete(self) -> None:
        self._budget.latencies.append((time.perf_counter() - self._started) * 1000)
        status = self._parser.get_status_code()
        if status != OK:
            self._done.set_exception(AssertionError(f"answered {status}"))
            self._transport.close()
            return
        self._send()

    def _send(self) -> None:
        if self._budget.left == 0:
            if not self._done.done():
                self._done.set_result(None)
            self._transport.close()
            return
        self._budget.left -= 1
        self._parser = httptools.HttpResponseParser(self)
        self._started = time.perf_counter()
        self._transport.write(next(self._requests))


@dataclass(slots=True)
class _Budget:
    """The number of requests still to be sent by all connections together."""

    left: int
    latencies: list[float]


async def run_load(
    port: int, request: bytes | Iterator[bytes], *, connections: int, requests: int
) -> Load:
    """Send `requests` requests over `connections` connections, each waiting for its answer.

    Every request is the same one, or the next of several.
    """
    each = repeat(request) if isinstance(request, bytes) else request
    loop = asyncio.get_running_loop()
    budget = _Budget(requests, [])
    done = [loop.create_future() for _ in range(connections)]
    started = time.perf_counter()
    await asyncio.gather(
        *(
            loop.create_connection(partial(_Connection, each, budget, future), "127.0.0.1", port)
            for future in done
        )
    )
    await asyncio.gather(*done)
    return Load(time.perf_counter() - started, tuple(sorted(budget.latencies)))


@dataclass(frozen=True, slots=True)
class Upload:
    """One encoded multipart request; all uploads share one image."""

    before: bytes
    image: bytes
    after: bytes


def upload_bytes(host: str, path: str, key: str, fields: dict[str, str], image: bytes) -> Upload:
    """Encode a form with these fields and a PNG named `image`."""
    plain = "".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    form = (
        f"{plain}--{BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="image"; filename="noise.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    ).encode()
    after = f"\r\n--{BOUNDARY}--\r\n".encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {len(form) + len(image) + len(after)}\r\n\r\n"
    ).encode()
    return Upload(head + form, image, after)


class _Answer:
    """The parser's callbacks for one answer."""

    is_complete = False

    def on_message_complete(self) -> None:
        self.is_complete = True


async def _send(port: int, upload: Upload) -> float:
    loop = asyncio.get_running_loop()
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    started = time.perf_counter()
    # A transport would copy the bytes that the socket does not take at once: all images.
    with socket.socket() as connection:
        connection.setblocking(False)  # noqa: FBT003 - the socket's own signature
        await loop.sock_connect(connection, ("127.0.0.1", port))
        for part in (upload.before, upload.image, upload.after):
            await loop.sock_sendall(connection, part)
        while not answer.is_complete:
            received = await loop.sock_recv(connection, RECEIVED_BYTES)
            assert received, "closed by the server"
            parser.feed_data(received)
    assert parser.get_status_code() == OK, f"answered {parser.get_status_code()}"
    return (time.perf_counter() - started) * 1000


async def run_uploads(port: int, uploads: Sequence[Upload]) -> Load:
    """Send all uploads at once, each over a separate connection."""
    started = time.perf_counter()
    milliseconds = await asyncio.gather(*(_send(port, upload) for upload in uploads))
    return Load(time.perf_counter() - started, tuple(sorted(milliseconds)))
