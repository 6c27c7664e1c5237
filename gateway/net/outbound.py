"""HTTP sessions for untrusted addresses: parsing of URLs, and checks of the resolved addresses.

An address is checked after each DNS lookup and again at the socket, which prevents DNS rebinding.
No proxy, cookie or credential of the environment is used.
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
"""Resolves a host name to its addresses; raises OSError if it has none."""
SocketFactory = Callable[[aiohttp.AddrInfoType], socket.socket]
"""Opens an unconnected socket of the given family, type and protocol."""
Guard = Callable[[str], bool]
"""Tells whether an address, in its usual spelling, may be connected to."""

MAX_URL_CHARACTERS = 8192
MAX_AUTHORITY_CHARACTERS = 300
"""A host name has at most 253; encoding a longer one in ASCII takes tens of milliseconds."""
MAX_ADDRESSES_TRIED = 8
RESOLVER_THREADS = 64
"""Twice as many as the links that one tenant may have fetched at a time."""
# At least one dot, none at the end, and a last label that begins with a letter: every other
# spelling of an IPv4 address (2130706433, 0x7f.1, 0177.0.0.1) ends in a label that does not.
_HOST_NAME = re.compile(
    r"(?=.{4,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])",
    re.ASCII | re.IGNORECASE,
)


class UnreadableUrl(ValueError):
    """A URL that has no host, or an ambiguous one."""


class AddressRefused(OSError):
    """An address that must not be connected to. An OSError, since aiohttp passes only those on."""


# Parsing


def read_url(url: str) -> URL:
    """Parse `url` once, to be both checked and sent. It may name a user: see `has_user`.

    Raises:
        UnreadableUrl: it is too long, contains odd characters, or is ambiguous.
    """
    try:
        if len(url) > MAX_URL_CHARACTERS or not url.isprintable() or " " in url or "\\" in url:
            raise UnreadableUrl
        if max(map(len, re.split("[/?#]", url, maxsplit=3)[:3])) > MAX_AUTHORITY_CHARACTERS:
            raise UnreadableUrl
        # Kept as spelled where possible: re-encoding may invalidate a signature in the query.
        address = URL(url, encoded=url.isascii())
        _ = address.host_subcomponent, address.port
    except (ValueError, IndexError):  # yarl raises IndexError for some stray brackets
        raise UnreadableUrl from None
    return address


def has_user(address: URL) -> bool:
    """Tell whether the address names a user, or may be read so."""
    return "@" in address.raw_authority


def origin(address: URL) -> str:
    """Return `scheme://host:port`, with an explicit port."""
    return f"{address.scheme}://{address.host_subcomponent}:{address.port}".lower()


def is_literal(host: str) -> bool:
    """Tell whether the host is an address in its usual spelling, and not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_host_name(host: str) -> bool:
    """Tell whether this is a full host name, and not an unusual spelling of an address."""
    return _HOST_NAME.fullmatch(host) is not None


# Connecting


class SystemResolver:
    """Resolves names with the system's resolver, in a thread pool of its own.

    Untrusted host names can make lookups hang. They delay each other only, not the provider calls
    and image work in the event loop's default thread pool.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolver")

    async def __call__(self, host: str) -> Sequence[str]:
        """Return the addresses of `host`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _addresses, host)

    def close(self) -> None:
        """Cancel the pending lookups."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def anywhere(_address: str) -> bool:
    """Allow every address: the guard for hosts that the operator has named."""
    return True


def open_session(
    allows: Guard,
    resolver: Resolver,
    *,
    open_socket: SocketFactory | None,
    ssl_context: ssl.SSLContext | None,
    timeout: aiohttp.ClientTimeout,
) -> aiohttp.ClientSession:
    """Open a session that connects only to addresses that `allows` accepts.

    It keeps no state between requests and uses nothing of the environment. Call it in a running
    event loop.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            resolver=_GuardedResolver(allows, resolver),
            use_dns_cache=False,
            socket_factory=_guarded_socket(allows, open_socket or _socket),
            ssl=ssl_context or True,
            force_close=True,
            limit=0,  # the connect timeout must not include waiting for a free slot
        ),
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,  # no proxies, no netrc
        auto_decompress=False,
        headers={"User-Agent": f"image-gateway/{__version__}", "Accept-Encoding": "identity"},
    )


class _GuardedResolver(AbstractResolver):
    """Adapter of a `Resolver` for aiohttp that checks every address found."""

    def __init__(self, allows: Guard, resolver: Resolver) -> None:
        self._allows = allows
        self._resolver = resolver

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - both families, always
    ) -> list[ResolveResult]:
        """Return the checked addresses to connect to; no name is looked up after this."""
        addresses = await self._resolver(host)
        # All of them: an attacker may add one private address to public ones.
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
        """Do nothing: the owner of the resolver closes it."""


def _guarded_socket(allows: Guard, open_socket: SocketFactory) -> SocketFactory:
    """Check the address that is actually connected to, independent of its source."""

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
