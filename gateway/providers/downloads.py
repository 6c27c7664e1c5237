"""Fetches a file from an address that somebody else chose, and from nowhere inside.

The address comes from a client or from a provider's answer, so the request must not reach this
machine, its network or its cloud, carry a secret, or bring more than was bargained for.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from ipaddress import ip_address
from typing import BinaryIO

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from gateway import __version__
from gateway.addresses import is_public

Resolver = Callable[[str], Awaitable[Sequence[str]]]
"""Gives the addresses of a host name; raises OSError where it has none."""
SocketFactory = Callable[[aiohttp.AddrInfoType], socket.socket]
"""Opens a socket, not yet connected, of the family, type and protocol given."""

MAX_URL_CHARACTERS = 8192
MAX_AUTHORITY_CHARACTERS = 300
"""A host name has 253 at most; to spell out a longer one in ASCII takes tens of milliseconds."""
MAX_ADDRESSES_TRIED = 8
RESOLVER_THREADS = 8
HTTPS_PORT = 443
OK = 200
REDIRECTS = range(300, 400)
# At least one dot, none at the end, and a last label that begins with a letter: every other
# spelling of an IPv4 address (2130706433, 0x7f.1, 0177.0.0.1) ends in a label that does not.
_HOST_NAME = re.compile(
    r"(?=.{4,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])",
    re.ASCII | re.IGNORECASE,
)


class Refusal(StrEnum):
    """Why a file was not fetched."""

    NOT_HTTPS = "not_https"
    BAD_URL = "bad_url"
    PRIVATE_ADDRESS = "private_address"
    REDIRECT = "redirect"
    TOO_LARGE = "too_large"
    BAD_STATUS = "bad_status"
    UNREACHABLE = "unreachable"
    TOO_SLOW = "too_slow"
    NOT_AN_IMAGE = "not_an_image"


class DownloadRefused(Exception):
    """Nothing was fetched. `message` never quotes the address: its query is often a signature."""

    def __init__(self, reason: Refusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Downloads:
    """Fetches files, `max_connections` at once; made in a running event loop.

    `trusted_origins` are hosts of the operator's own, each as `origin_of` gives it: they may be
    private and speak plain HTTP. Whoever chooses the address of a fetch can call any path there,
    so addresses that clients send belong to an instance without trusted origins.

    `resolver`, `ssl_context` and `open_socket` default to the system's own. None of them decides
    what is let through: each address is checked after the resolver and before the socket.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        total_seconds: float,
        connect_seconds: float,
        max_connections: int = 64,
        trusted_origins: frozenset[str] = frozenset(),
        resolver: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
        open_socket: SocketFactory | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._total_seconds = total_seconds
        self._trusted_origins = trusted_origins
        self._slots = asyncio.Semaphore(max_connections)
        # Whoever chooses host names can make look-ups hang. In threads of their own they hold up
        # each other, not the provider calls and image work that share the event loop's.
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolver")
        resolver = resolver or self._resolve
        timeout = aiohttp.ClientTimeout(total=None, connect=connect_seconds)
        self._guarded = _session(
            _PublicResolver(resolver), _public_socket(open_socket or _socket), ssl_context, timeout
        )
        self._trusted = _session(
            _AnyResolver(resolver), open_socket or _socket, ssl_context, timeout
        )

    async def fetch(self, url: str, target: BinaryIO) -> int:
        """Write what is at `url` to `target`, an empty file, and rewind it.

        Returns the number of bytes. After any failure the file is empty again.

        Raises:
            DownloadRefused: the address may not be fetched, or brought no file.
        """
        address, origin = _parse(url)
        session = self._trusted
        if origin not in self._trusted_origins:
            _refuse_inside(address)
            session = self._guarded
        size = 0
        try:
            size = await self._fetch_in_time(session, address, target)
        finally:
            target.seek(0)
            target.truncate(size)
        return size

    async def close(self) -> None:
        """Close connections."""
        await self._guarded.close()
        await self._trusted.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _fetch_in_time(
        self, session: aiohttp.ClientSession, address: URL, target: BinaryIO
    ) -> int:
        # Causes are dropped: aiohttp's quote the whole address, and logs would keep it.
        try:
            async with asyncio.timeout(self._total_seconds), self._slots:
                return await self._stream(session, address, target)
        except aiohttp.ClientError as error:
            raise _explain(error) from None
        except TimeoutError:
            raise DownloadRefused(
                Refusal.TOO_SLOW,
                f"The file did not arrive within {self._total_seconds:g} seconds. "
                "Try again, or send the picture itself.",
            ) from None

    async def _stream(self, session: aiohttp.ClientSession, address: URL, target: BinaryIO) -> int:
        size = 0
        async with session.get(address, allow_redirects=False) as answer:
            _refuse_answer(answer)
            self._refuse_size(answer.content_length or 0)
            async for chunk in answer.content.iter_any():
                size += len(chunk)
                self._refuse_size(size)
                target.write(chunk)  # at most a few buffers, into the system's cache
        if size == 0:
            raise DownloadRefused(Refusal.NOT_AN_IMAGE, "The file behind the link is empty.")
        return size

    def _refuse_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise DownloadRefused(
                Refusal.TOO_LARGE,
                f"The file is larger than {self._max_bytes} bytes. Give a smaller picture.",
            )

    async def _resolve(self, host: str) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _addresses, host)


def origin_of(url: str) -> str:
    """`scheme://host:port` of the operator's own address, with the port spelled out.

    Raises:
        ValueError: it is no address of a host.
    """
    address = URL(url, encoded=url.isascii())
    if not address.raw_host:
        raise ValueError(f"{url} names no host")
    return _origin(address)


# What is asked for


def _parse(url: str) -> tuple[URL, str]:
    """The one reading of `url` that is both checked and sent, and its origin."""
    try:
        if len(url) > MAX_URL_CHARACTERS or not url.isprintable() or " " in url or "\\" in url:
            raise _bad_url()
        if max(map(len, re.split("[/?#]", url, maxsplit=3)[:3])) > MAX_AUTHORITY_CHARACTERS:
            raise _bad_url()
        # Letter by letter where that is possible: a signature may not survive another spelling.
        address = URL(url, encoded=url.isascii())
        origin = _origin(address)
    except (ValueError, IndexError):  # the second is yarl's, for some stray brackets
        raise _bad_url() from None
    if "@" in address.raw_authority:
        raise DownloadRefused(
            Refusal.BAD_URL, "The link holds a user name or password. Give one without."
        )
    return address, origin


def _origin(address: URL) -> str:
    return f"{address.scheme}://{address.host_subcomponent}:{address.port}".lower()


def _refuse_inside(address: URL) -> None:
    if address.scheme != "https":
        raise DownloadRefused(Refusal.NOT_HTTPS, "Give a link that begins with https://.")
    host = address.raw_host
    if not host:
        raise _bad_url()
    if address.port != HTTPS_PORT:
        raise DownloadRefused(
            Refusal.BAD_URL, "The link names a port. Give one without: only 443 is fetched from."
        )
    if _is_literal(host):
        if not is_public(host):
            raise _private()
    elif not _HOST_NAME.fullmatch(host):
        raise _bad_url()


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _bad_url() -> DownloadRefused:
    return DownloadRefused(
        Refusal.BAD_URL, "The link cannot be read. Give one such as https://example.com/picture.png"
    )


def _private() -> DownloadRefused:
    return DownloadRefused(
        Refusal.PRIVATE_ADDRESS,
        "The link leads to an address that is not on the public internet. "
        "Send the picture itself, or a link that everybody can open.",
    )


# Where it goes


class _NotPublic(OSError):
    """An address that must not be connected to; aiohttp hands on errors of this class alone."""


class _AnyResolver(AbstractResolver):
    """A `Resolver` as aiohttp expects it."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - both families, always
    ) -> list[ResolveResult]:
        """The addresses to connect to: no name is looked up after this."""
        addresses = self._allowed(await self._resolver(host))
        if not addresses:
            raise OSError("no address")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses[:MAX_ADDRESSES_TRIED]
        ]

    async def close(self) -> None:
        """Whoever gave the resolver closes it."""

    def _allowed(self, addresses: Sequence[str]) -> Sequence[str]:
        return addresses


class _PublicResolver(_AnyResolver):
    def _allowed(self, addresses: Sequence[str]) -> Sequence[str]:
        # One private address among public ones is how a name is made to lead inside.
        if not all(map(is_public, addresses)):
            raise _NotPublic
        return addresses


def _public_socket(open_socket: SocketFactory) -> SocketFactory:
    """The last look at an address: at the very one that is connected to, wherever it came from."""

    def open_public(info: aiohttp.AddrInfoType) -> socket.socket:
        if not is_public(str(info[4][0])):
            raise _NotPublic
        return open_socket(info)

    return open_public


def _socket(info: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = info
    return socket.socket(family, kind, protocol)


def _addresses(host: str) -> Sequence[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _session(
    resolver: AbstractResolver,
    open_socket: SocketFactory,
    ssl_context: ssl.SSLContext | None,
    timeout: aiohttp.ClientTimeout,
) -> aiohttp.ClientSession:
    """A session that remembers nothing between fetches, and adds nothing from its surroundings."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            resolver=resolver,
            use_dns_cache=False,
            socket_factory=open_socket,
            ssl=ssl_context or True,
            force_close=True,
            limit=0,  # waiting for a slot is not part of connecting
        ),
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,  # no proxies, no netrc
        auto_decompress=False,
        headers={"User-Agent": f"image-gateway/{__version__}", "Accept-Encoding": "identity"},
    )


# What comes back


def _refuse_answer(answer: aiohttp.ClientResponse) -> None:
    if answer.status in REDIRECTS:
        raise DownloadRefused(
            Refusal.REDIRECT, "The link leads on to another one. Give the link it ends at."
        )
    if answer.status != OK:
        raise DownloadRefused(
            Refusal.BAD_STATUS,
            f"The host answers with status {answer.status}. "
            "Check that the link opens for everybody.",
        )
    encodings = {text.strip().lower() for text in answer.headers.getall("Content-Encoding", [])}
    if encodings - {"", "identity"}:
        raise DownloadRefused(
            Refusal.NOT_AN_IMAGE,
            "The host sends the file compressed, which was not asked for. "
            "Send the picture itself, or a link to another host.",
        )


def _explain(error: aiohttp.ClientError) -> DownloadRefused:
    if isinstance(error, aiohttp.ClientSSLError):
        what = "The host's certificate cannot be verified. Send the picture itself."
    elif isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, _NotPublic):
        return _private()
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        what = "The link's host has no address. Check its name."
    elif isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        what = "The link's host cannot be reached. Try again, or send the picture itself."
    else:
        what = "The host broke off before the file was complete. Try again."
    return DownloadRefused(Refusal.UNREACHABLE, what)
