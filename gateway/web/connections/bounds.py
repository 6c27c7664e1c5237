"""Bounds on client connections, and how many descriptors the process may spend on them."""

import sys
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from gateway.config import Settings

if sys.platform != "win32":
    import resource

RESERVED_DESCRIPTORS = 128
"""For listeners, the database, decoders, logs and stored images."""
DESCRIPTORS_PER_CONNECTION = 2
"""A client's, and one more for its call to a provider or its spooled upload."""
FEWEST_CONNECTIONS = 16
MOST_DESCRIPTORS = 65_536
IPV6_SITE_BITS = 64
"""One client has at least so many addresses to choose from (RFC 6177), so they count as one."""


@dataclass(frozen=True)
class ConnectionBounds:
    """What one connection may send before its request is understood, and how many there may be."""

    header_bytes: int
    headers: int
    url_bytes: int
    header_seconds: float
    send_seconds: float
    pipelined: int
    connections: int
    idle: int
    per_address: int
    proxies: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def of(cls, settings: Settings) -> "ConnectionBounds":
        """The settings' bounds; connections in all stay below the process's descriptors."""
        connections = min(settings.max_connections, connections_within(descriptor_limit()))
        return cls(
            header_bytes=settings.max_header_bytes,
            headers=settings.max_headers,
            url_bytes=settings.max_url_bytes,
            header_seconds=settings.header_seconds,
            send_seconds=settings.send_seconds,
            pipelined=settings.max_pipelined_requests,
            connections=connections,
            idle=min(settings.max_idle_connections, connections),
            per_address=settings.max_connections_per_address or max(1, connections // 2),
            proxies=settings.proxy_networks,
        )

    def counted_address(self, host: str | None) -> str | None:
        """The address to count a connection under; None for a proxy's, and for a Unix socket."""
        try:
            address = ip_address(host or "")
        except ValueError:
            return None
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        if any(address in network for network in self.proxies):
            return None
        if isinstance(address, IPv6Address):
            return str(IPv6Network((address, IPV6_SITE_BITS), strict=False))
        return str(address)


def connections_within(descriptors: int | None) -> int:
    """How many connections that many descriptors allow; None: they are not limited."""
    if descriptors is None:
        return sys.maxsize
    return max(
        FEWEST_CONNECTIONS, (descriptors - RESERVED_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION
    )


def descriptor_limit() -> int | None:
    """How many descriptors this process may have open; None: not limited."""
    if sys.platform == "win32":
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit() -> None:
    """Take as many descriptors as the system grants: the usual 1024 serve few connections.

    The low default is for programs that call select(2), which the gateway does not.
    """
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
