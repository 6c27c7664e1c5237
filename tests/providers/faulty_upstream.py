"""A vendor's address that misbehaves as it is told: TLS in front of a healthy stub."""

import asyncio
import gzip
import re
import socket
import ssl
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from tests.providers.contract import HANG, RESET, Dialect, answer_bytes
from tests.providers.faults import DRIP, Fault

DRIP_SECONDS = 0.2
MAX_BYTES = 2**24
HEAD_END = b"\r\n\r\n"
RESETTING = struct.pack("ii", 1, 0)
"""Linger for no time: the kernel then resets the connection instead of closing it."""


@dataclass(frozen=True)
class Vendor:
    """A healthy stub and its words: a model of it, its port, its bill, and the faults it knows.

    `body` asks for one image, with `streamed` as a stream. `billed_nano` sums its bill (nano-USD).
    """

    title: str
    provider: str
    dialect: Dialect
    body: dict[str, object]
    port: int
    billed_nano: Callable[[], int]
    expect_fault: Callable[[str], None]
    streamed: Mapping[str, object] = field(default_factory=lambda: {"stream": True})


@dataclass
class Arrived:
    """The connections and whole requests of one case that reached the vendor, and their bill.

    `connections` is not counted where a case shares the vendor with others.
    """

    connections: int = 0
    calls: int = 0
    billed_nano: int = 0


def prompt_of(case: int) -> str:
    """The prompt by which the upstream recognises a case."""
    return f"a red circle, case-{case}"


class FaultyUpstream:
    """The address of one vendor. A call's prompt names its case, and the case its fault."""

    def __init__(self, vendor: Vendor, trusted: ssl.SSLContext, untrusted: ssl.SSLContext) -> None:
        self.vendor = vendor
        self.port = 0
        self.arrived: defaultdict[int, Arrived] = defaultdict(Arrived)
        self._contexts = {"plain": None, "untrusted": untrusted}
        self._trusted = trusted
        self._faults: dict[int, Fault] = {}
        self._listens = ""
        self._latest = 0
        self._server: asyncio.Server | None = None
        # One after another: what the bill grows by is then what this call costs.
        self._turn = asyncio.Lock()

    @property
    def base_url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def expect(self, case: int, fault: Fault) -> None:
        """Let `fault` happen to the call of `case`."""
        self._faults[case] = fault
        self._latest = case
        await self.listen(fault.listens)

    async def listen(self, listens: str) -> None:
        """Take connections in another way, at the same port."""
        if listens == self._listens:
            return
        self._listens = listens
        self.close()
        if listens == "closed":
            return
        self._server = await asyncio.get_running_loop().create_server(
            self._accept,
            "127.0.0.1",
            self.port,
            ssl=self._contexts.get(listens, self._trusted),
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Refuse connections."""
        if self._server is not None:
            self._server.close()

    def _accept(self) -> asyncio.Protocol:
        self.arrived[self._latest].connections += 1
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=MAX_BYTES), self._serve)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await self._serve_one(reader, writer)
        writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._listens == "plain":
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request" + HEAD_END)
            return
        head = await reader.readuntil(HEAD_END)
        if self._listens == "unread":
            self.arrived[self._latest].calls += 1
            _reset(writer)
            return
        body = await reader.readexactly(_length(head))
        named = re.search(rb"case-(\d+)", body)
        assert named is not None, "a call that no case has made"
        fault, arrived = self._faults[int(named[1])], self.arrived[int(named[1])]
        arrived.calls += 1
        answer = await self._answer(fault, head + body, arrived)
        await _send(fault, answer, reader, writer)

    async def _answer(self, fault: Fault, request: bytes, arrived: Arrived) -> bytes:
        vendor, answer = self.vendor, b""
        if fault.is_made:
            async with self._turn:
                before = vendor.billed_nano()
                if twist := fault.twists.get(vendor.title):
                    vendor.expect_fault(twist)
                answer = await _ask(vendor.port, request)
                arrived.billed_nano += vendor.billed_nano() - before
        if fault.words:
            answer = answer_bytes(vendor.dialect, fault.status, fault.words)
        return _changed(fault, answer)


async def _ask(port: int, request: bytes) -> bytes:
    """Pass a request on to the healthy stub; return its whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MAX_BYTES)
    writer.write(request)
    head = await reader.readuntil(HEAD_END)
    body = await (_read_chunks(reader) if _is_chunked(head) else reader.readexactly(_length(head)))
    writer.close()
    return head + body


def _is_chunked(head: bytes) -> bool:
    return re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head) is not None


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """Read the whole body of a stream, which has no length."""
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return body


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return 0 if found is None else int(found[1])


def _changed(fault: Fault, answer: bytes) -> bytes:
    """Compress or relabel the answer; no further call uses its connection."""
    head, _, body = answer.partition(HEAD_END)
    if fault.media_type:
        head = re.sub(rb"(?i)(\r\ncontent-type:)[^\r]*", rb"\1 " + fault.media_type.encode(), head)
    if fault.encoding:
        body = gzip.compress(body)
        head += b"\r\ncontent-encoding: gzip"
    if fault.encoding == "damaged gzip":
        body = body[: len(body) // 2] + bytes(len(body) - len(body) // 2)
    head = re.sub(rb"(?i)\r\n(content-length|connection|transfer-encoding):[^\r]*", b"", head)
    return head + b"\r\nconnection: close\r\ncontent-length: %d" % len(body) + HEAD_END + body


async def _send(
    fault: Fault, answer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    head = answer.index(HEAD_END) + len(HEAD_END)
    half = (head + len(answer)) // 2
    sent = {"nothing": 0, "head": head, "half": half, "whole": len(answer)}[fault.sent]
    writer.write(answer[:sent])
    await writer.drain()
    if fault.then == RESET:
        _reset(writer)
    elif fault.then == HANG:
        await reader.read()
    while fault.then == DRIP and not await _has_left(reader):
        writer.write(answer[sent : sent + 1])
        sent += 1


async def _has_left(reader: asyncio.StreamReader) -> bool:
    """Tell if the client closes the connection before the next drop is due."""
    try:
        async with asyncio.timeout(DRIP_SECONDS):
            await reader.read()
    except TimeoutError:
        return False
    return True


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETTING)
    writer.transport.abort()


@asynccontextmanager
async def faulty_upstream(
    vendor: Vendor, trusted: ssl.SSLContext, untrusted: ssl.SSLContext
) -> AsyncIterator[FaultyUpstream]:
    """Serve a vendor's faults at a free port."""
    upstream = FaultyUpstream(vendor, trusted, untrusted)
    await upstream.listen("open")
    try:
        yield upstream
    finally:
        upstream.close()
