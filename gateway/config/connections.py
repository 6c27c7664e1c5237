"""Settings of client connections, which apply before an API key is read."""

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Self

from pydantic import Field, model_validator

from gateway.config.base import SettingsGroup


class ConnectionSettings(SettingsGroup):
    """Client connections of each process, before an API key is read (docs/load.md)."""

    max_connections: int = Field(
        default=4096,
        ge=16,
        le=1_000_000,
        description="Open connections. The limit is lower where the process may not open that many "
        "file descriptors: half of them, less 128.",
    )
    max_idle_connections: int = Field(default=2048, ge=1, description="Idle connections.")
    max_connections_per_address: int | None = Field(
        default=None,
        ge=1,
        description="Open connections from one client address. Default: half of "
        "`GATEWAY_MAX_CONNECTIONS`.",
        examples=["2048"],
    )
    proxy_addresses: str = Field(
        default="127.0.0.0/8,::1",
        description="Addresses or networks of your own reverse proxies, separated by commas. The "
        "limit per address does not apply to them.",
    )
    header_seconds: float = Field(
        default=10.0,
        gt=0,
        description="The seconds from the first byte of a connection or request until its headers "
        "are complete.",
    )
    max_header_bytes: int = Field(
        default=65_536, ge=4096, le=1_048_576, description="The bytes of a request's headers."
    )
    max_headers: int = Field(
        default=100, ge=16, le=10_000, description="The number of a request's headers."
    )
    max_url_bytes: int = Field(
        default=8192, ge=1024, le=65_536, description="The bytes of a request's URL."
    )
    max_pipelined_requests: int = Field(
        default=16,
        ge=1,
        le=1000,
        description="Requests that a client may send on one connection before an earlier one is "
        "answered.",
    )
    send_seconds: float = Field(
        default=60.0,
        gt=0,
        description="The seconds after which a client that reads nothing of its answer is "
        "disconnected.",
    )

    @model_validator(mode="after")
    def _require_proxy_addresses(self) -> Self:
        try:
            _ = self.proxy_networks
        except ValueError:
            raise ValueError(
                "GATEWAY_PROXY_ADDRESSES must be addresses or networks, separated by commas, such "
                "as 10.0.0.5,192.168.0.0/16."
            ) from None
        return self

    @property
    def proxy_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The operator's own reverse proxies, behind one of whose addresses stand many clients."""
        given = (part.strip() for part in self.proxy_addresses.split(","))
        return tuple(ip_network(part, strict=False) for part in given if part)
