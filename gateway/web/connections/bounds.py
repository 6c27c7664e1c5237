"""Bounds on client connections, and the budget of file descriptors of the process."""

import sys
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from gateway.config import Settings

if sys.platform != "win32":
    import resource

RESERVED_DESCRIPTORS = 128
"""Descriptors for listeners, the database, decoders, logs and stored images."""
DESCRIPTORS_PER_CONNECTION = 2
"""One for the client, and one for its call to a provider or its spooled upload."""
FEWEST_CONNECTIONS = 16
MOST_DESCRIPTORS = 65_536
LAST_SECONDS = 1.0
"""Time in which a balancer finds that nothing listens any more, or a new connection's first request
arrives."""
IPV6_SITE_BITS = 64
"""A site gets at least a /64 of addresses (RFC 6177), so each prefix counts as one client."""


@dataclass(frozen=True)
class ConnectionBounds:
    """Limits per connection before its request is understood, and the number of connections.

    Not the settings themselves: `gateway serve` sends these to its workers, without any secret.
    `last_seconds`: how long open connections are served once nothing listens any more.
    """

    header_bytes: int
    headers: int
    url_bytes: int
    header_seconds: float
    send_seconds: float
    pipelined: int
    connections: int
    idle: int
    per_address: int
    last_seconds: float
    proxies: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def of(cls, settings: Settings) -> "ConnectionBounds":
        """Build the settings' bounds; all connections together stay below the descriptor limit."""
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
            last_seconds=last_seconds(settings),
            proxies=settings.proxy_networks,
        )

    def counted_address(self, host: str | None) -> str | None:
        """The address to count a connection under; None for trusted proxies and Unix sockets."""
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


def last_seconds(settings: Settings) -> float:
    """Return how long connections outlive their listener, where others go on serving.

    A balancer that finds no listener turns to another gateway, and the kernel to another worker.
    But a client that has sent a request on an open connection does not know if it was read.
    """
    others_serve = settings.shutdown_delay_seconds > 0 or settings.workers > 1
    return LAST_SECONDS if others_serve else 0.0


def connections_within(descriptors: int | None) -> int:
    """Compute the connections that this many descriptors allow; None: not limited."""
    if descriptors is None:
        return sys.maxsize
    return max(
        FEWEST_CONNECTIONS, (descriptors - RESERVED_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION
    )


def descriptor_limit() -> int | None:
    """The process's limit on open file descriptors; None: not limited."""
    if sys.platform == "win32":
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit() -> None:
    """Raise the soft descriptor limit to the hard limit: the usual 1024 serve few connections.

    The low default is for programs that call select(2), which the gateway does not.
    """
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
