"""Refusals sent before a request is parsed, rendered once."""

from dataclasses import dataclass
from functools import cache
from http import HTTPStatus

import orjson

from gateway.errors import (
    GatewayError,
    HeadersTooLarge,
    InvalidRequest,
    RequestTooSlow,
    Unavailable,
    UrlTooLong,
    envelope,
    response_headers,
)
from gateway.web.connections.bounds import ConnectionBounds


@dataclass(frozen=True)
class ConnectionRefusal:
    """A reason to close a connection; `error` is None if it is closed without a message.

    `counted` is a label of `gateway_connections_refused_total`.
    """

    counted: str
    error: GatewayError | None = None


class ConnectionRefusals:
    """All reasons to close a connection."""

    silent = ConnectionRefusal("silent")
    """The client began no request in time."""
    gave_way = ConnectionRefusal("idle")
    """The connection was idle, and new connections needed its slot."""
    body_unread = ConnectionRefusal("body")
    """The request was answered, but its body did not end in time."""
    handshake = ConnectionRefusal("handshake")
    """The client did not complete the TLS handshake."""
    not_taken = ConnectionRefusal("answer")
    """The client does not read its answer."""
    pipelined = ConnectionRefusal("pipelined")
    malformed = ConnectionRefusal(
        "malformed",
        InvalidRequest("This is not a valid HTTP/1.1 request.", code="invalid_http"),
    )
    host = ConnectionRefusal(
        "host",
        InvalidRequest(
            "The Host header must be sent once, as the name or address of the gateway and, if "
            "it is not the usual one, its port: images.example.com:8000.",
            code="invalid_host",
        ),
    )

    def __init__(self, bounds: ConnectionBounds) -> None:
        self.header_bytes = ConnectionRefusal(
            "header_bytes",
            HeadersTooLarge(
                f"The request's headers are longer than {bounds.header_bytes} bytes. Send fewer or "
                "shorter headers."
            ),
        )
        self.headers = ConnectionRefusal(
            "headers",
            HeadersTooLarge(
                f"The request has more than {bounds.headers} header lines. Send fewer headers."
            ),
        )
        self.framing = ConnectionRefusal(
            "framing",
            HeadersTooLarge(
                "The request's body comes in chunks that are too small, or with too much data "
                "between or after them. Send larger chunks, or a Content-Length, and no trailers."
            ),
        )
        self.url = ConnectionRefusal(
            "url",
            UrlTooLong(
                f"The request's URL is longer than {bounds.url_bytes} bytes. Shorten its query."
            ),
        )
        self.too_slow = ConnectionRefusal(
            "slow",
            RequestTooSlow(
                f"The request's headers took longer than {bounds.header_seconds:g} seconds. "
                "Try again."
            ),
        )
        self.connections = ConnectionRefusal(
            "connections",
            Unavailable(
                f"All {bounds.connections} connections of this process are in use. Try again.",
                retry_after_seconds=1,
            ),
        )
        self.address = ConnectionRefusal(
            "address",
            Unavailable(
                f"This address has {bounds.per_address} open connections already, the most allowed "
                "per address. Reuse them, or close some.",
                retry_after_seconds=1,
            ),
        )


@cache  # there are few, and each may be sent thousands of times per second
def rendered(error: GatewayError) -> tuple[bytes, bytes]:
    """Render the status line with all headers but the common ones, and the body."""
    body = orjson.dumps(envelope(error))
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
    }
    headers |= response_headers(error)
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    lines += [f"{name.lower()}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n", body
