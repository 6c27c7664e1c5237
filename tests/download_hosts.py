"""Hosts, names and certificates on loopback for tests of downloads."""

import asyncio
import contextlib
import datetime as dt
import errno
import io
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import AddrInfoType
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.net.downloads import DownloadProblem, DownloadRefused, Downloads, origin_of

NAME = "images.example"
PUBLIC = "93.184.215.14"
IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 700
MAX_BYTES = 1_000_000

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Host:
    """A web host on loopback; `requests` are the request heads that it received."""

    answer: Answer
    requests: list[bytes] = field(default_factory=list)
    port: int = 0
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        """An image on this host, over plain HTTP."""
        return f"http://127.0.0.1:{self.port}/image.png"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            await self.answer(writer)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def web_host(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Host]:
    """A host that gives this answer."""
    host = Host(answer)
    server = await asyncio.start_server(host.serve, "127.0.0.1", 0, ssl=tls)
    host.port = server.sockets[0].getsockname()[1]
    yield host
    server.close()
    for task in host.serving:
        task.cancel()
    await asyncio.gather(*host.serving)


def sends(
    body: bytes = IMAGE, *headers: str, status: str = "200 OK", length: int | None = None
) -> Answer:
    """An answer sent at once; `length` is the Content-Length that it claims."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        claimed = len(body) if length is None else length
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {claimed}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)

    return answer


def sends_raw(content: bytes) -> Answer:
    """An answer sent as these very bytes."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(content)

    return answer


def drips(head: bytes, drop: bytes) -> Answer:
    """An answer that sends a few bytes at a time and never ends."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while not writer.is_closing():
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0)

    return answer


async def says_nothing(writer: asyncio.StreamWriter) -> None:
    """An answer that never begins."""
    await asyncio.Event().wait()


async def resets(writer: asyncio.StreamWriter) -> None:
    """An answer cut off in the middle by a TCP reset."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\nabc")
    await writer.drain()
    writer.transport.abort()


@dataclass
class Names:
    """A resolver that gives these answers one after another and then repeats the last."""

    answers: Sequence[Sequence[str]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str) -> Sequence[str]:
        """Look `host` up."""
        self.asked.append(host)
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


class DetouredSocket(socket.socket):
    """A socket that connects to loopback whatever the address: no test leaves this machine."""

    port = 0

    def connect(self, address: Any) -> None:
        super().connect(("127.0.0.1", self.port))


@dataclass
class Dialled:
    """Opens sockets and records their addresses; all connect to `port`, or to nothing."""

    port: int | None = None
    addresses: list[tuple[str, int]] = field(default_factory=list)

    def __call__(self, info: AddrInfoType) -> socket.socket:
        """Open a socket."""
        family, kind, protocol, _, address = info
        self.addresses.append((str(address[0]), int(address[1])))
        if self.port is None:
            raise OSError(errno.ENETUNREACH, "no route")
        opened = DetouredSocket(family, kind, protocol)
        opened.port = self.port
        return opened


@asynccontextmanager
async def downloading(**options: Any) -> AsyncIterator[Downloads]:
    """Downloads with limits so wide that no test reaches them by accident."""
    limits = {"max_bytes": MAX_BYTES, "total_seconds": 60, "connect_seconds": 60}
    downloads = Downloads(**(limits | options))
    yield downloads
    await downloads.close()


def trusting(host: Host, **options: Any) -> Any:
    """Downloads that may fetch from `host`."""
    return downloading(trusted_origins=frozenset({origin_of(host.url)}), **options)


async def refusal(downloads: Downloads, url: str) -> DownloadProblem:
    """The problem for which `url` is refused; nothing may be left in the file."""
    target = io.BytesIO()
    with pytest.raises(DownloadRefused) as caught:
        await downloads.fetch(url, target)
    assert (target.getvalue(), target.tell()) == (b"", 0)
    return caught.value.reason


@dataclass(frozen=True)
class Certificates:
    """A server's side and a client's, for one certificate authority made for the test."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def certificates(folder: Path, name: str) -> Certificates:
    """A certificate for `name` from an authority that only its own clients trust."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "An authority for one test")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        not_valid_before=now - dt.timedelta(days=1),
        not_valid_after=now + dt.timedelta(days=1),
    )
    authority = (
        builder.subject_name(issuer)
        .public_key(authority_key.public_key())
        .serial_number(1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        builder.subject_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(2)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    chain = folder / "chain.pem"
    chain.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(chain)
    client = ssl.create_default_context(cadata=authority.public_bytes(pem).decode())
    return Certificates(server, client)
