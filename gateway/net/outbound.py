"""HTTP to addresses that somebody else chose: how they are read, and where they may lead.

An address is checked after each look-up and once more at the socket, so that a name cannot lead
elsewhere between the two (DNS rebinding). Nothing from the surroundings is sent along.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from gateway import __version__

Resolver = Callable[[str], Awaitable[Sequence[str]]]
"""Gives the addresses of a host name; raises OSError where it has none."""
SocketFactory = Callable[[aiohttp.AddrInfoType], socket.socket]
"""Opens a socket, not yet connected, of the family, type and protocol given."""
Guard = Callable[[str], bool]
"""Whether this address, in its usual spelling, may be connected to."""

MAX_URL_CHARACTERS = 8192
MAX_AUTHORITY_CHARACTERS = 300
"""A host name has 253 at most; to spell out a longer one in ASCII takes tens of milliseconds."""
MAX_ADDRESSES_TRIED = 8
RESOLVER_THREADS = 8
# At least one dot, none at the end, and a last label that begins with a letter: every other
# spelling of an IPv4 address (2130706433, 0x7f.1, 0177.0.0.1) ends in a label that does not.
_HOST_NAME = re.compile(
    r"(?=.{4,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])",
    re.ASCII | re.IGNORECASE,
)


class UnreadableUrl(ValueError):
    """No address of a host, or one that could be read in two ways."""


class AddressRefused(OSError):
    """An address that must not be connected to; aiohttp hands on errors of this class alone."""


# What is asked for


def read_url(url: str) -> URL:
    """The one reading of `url` that is both checked and sent. It may name a user: see `has_user`.

    Raises:
        UnreadableUrl: too long, with odd characters, or without a meaning that is certain.
    """
    try:
        if len(url) > MAX_URL_CHARACTERS or not url.isprintable() or " " in url or "\\" in url:
            raise UnreadableUrl
        if max(map(len, re.split("[/?#]", url, maxsplit=3)[:3])) > MAX_AUTHORITY_CHARACTERS:
            raise UnreadableUrl
        # Letter by letter where that is possible: a signature may not survive another spelling.
        address = URL(url, encoded=url.isascii())
        _ = address.host_subcomponent, address.port
    except (ValueError, IndexError):  # the second is yarl's, for some stray brackets
        raise UnreadableUrl from None
    return address


def has_user(address: URL) -> bool:
    """Whether the address names a user, or seems to."""
    return "@" in address.raw_authority


def origin(address: URL) -> str:
    """`scheme://host:port`, with the port spelled out."""
    return f"{address.scheme}://{address.host_subcomponent}:{address.port}".lower()


def is_literal(host: str) -> bool:
    """Whether the host is an address in its usual spelling, and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_host_name(host: str) -> bool:
    """Whether this is a full host name, and no odd spelling of an address."""
    return _HOST_NAME.fullmatch(host) is not None


# Where it goes


class SystemResolver:
    """Looks names up as the system does, in threads of its own.

    Whoever chooses host names can make look-ups hang. Here they hold up each other, not the
    provider calls and image work that share the event loop's threads.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolver")

    async def __call__(self, host: str) -> Sequence[str]:
        """The addresses of `host`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _addresses, host)

    def close(self) -> None:
        """Forget what still waits."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def anywhere(_address: str) -> bool:
    """The guard for hosts that the operator himself has named."""
    return True


def open_session(
    allows: Guard,
    resolver: Resolver,
    *,
    open_socket: SocketFactory | None,
    ssl_context: ssl.SSLContext | None,
    timeout: aiohttp.ClientTimeout,
) -> aiohttp.ClientSession:
    """A session that connects where `allows` says, remembers nothing between requests, and adds
    nothing from its surroundings. Made in a running event loop.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            resolver=_GuardedResolver(allows, resolver),
            use_dns_cache=False,
            socket_factory=_guarded_socket(allows, open_socket or _socket),
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


class _GuardedResolver(AbstractResolver):
    """A `Resolver` as aiohttp expects it, with a look at what it found."""

    def __init__(self, allows: Guard, resolver: Resolver) -> None:
        self._allows = allows
        self._resolver = resolver

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - both families, always
    ) -> list[ResolveResult]:
        """The addresses to connect to: no name is looked up after this."""
        addresses = await self._resolver(host)
        # One private address among public ones is how a name is made to lead inside.
        if not all(map(self._allows, addresses)):
            raise AddressRefused
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


def _guarded_socket(allows: Guard, open_socket: SocketFactory) -> SocketFactory:
    """The last look at an address: at the very one that is connected to, wherever it came from."""

    def open_allowed(info: aiohttp.AddrInfoType) -> socket.socket:
        if not allows(str(info[4][0])):
            raise AddressRefused
        return open_socket(info)

    return open_allowed


def _socket(info: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = info
    return socket.socket(family, kind, protocol)


def _addresses(host: str) -> Sequence[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
