"""Refusals that are given before a request is understood, rendered once."""

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
class Refusal:
    """Why a connection is ended, as its metric calls it; the error is None where nothing is said.

    `counted` is a label of `gateway_connections_refused_total`.
    """

    counted: str
    error: GatewayError | None = None


class Refusals:
    """Every reason to end a connection."""

    silent = Refusal("silent")
    """No request was begun."""
    gave_way = Refusal("idle")
    """It was idle, and others needed its place."""
    body_unread = Refusal("body")
    """Its request was answered, and its body still goes on."""
    not_taken = Refusal("answer")
    """It takes nothing of its answer."""
    pipelined = Refusal("pipelined")
    malformed = Refusal(
        "malformed",
        InvalidRequest("This is not an HTTP/1.1 request that can be read.", code="invalid_http"),
    )
    host = Refusal(
        "host",
        InvalidRequest(
            "The Host header must be given once, as the name or address of the gateway and, where "
            "it is not the usual one, its port: images.example.com:8000.",
            code="invalid_host",
        ),
    )

    def __init__(self, bounds: ConnectionBounds) -> None:
        self.header_bytes = Refusal(
            "header_bytes",
            HeadersTooLarge(
                f"The request's headers are longer than {bounds.header_bytes} bytes. Send fewer or "
                "shorter ones."
            ),
        )
        self.headers = Refusal(
            "headers",
            HeadersTooLarge(
                f"The request has more than {bounds.headers} header lines. Send fewer."
            ),
        )
        self.framing = Refusal(
            "framing",
            HeadersTooLarge(
                "The request's body comes in chunks that are too small, or with too much between "
                "and after them. Send larger chunks, or a Content-Length, and no trailers."
            ),
        )
        self.url = Refusal(
            "url",
            UrlTooLong(
                f"The request's URL is longer than {bounds.url_bytes} bytes. Shorten its query."
            ),
        )
        self.too_slow = Refusal(
            "slow",
            RequestTooSlow(
                f"The request's headers took longer than {bounds.header_seconds:g} seconds. "
                "Try again."
            ),
        )
        self.connections = Refusal(
            "connections",
            Unavailable(
                f"All {bounds.connections} connections of this process are in use. Try again.",
                retry_after_seconds=1,
            ),
        )
        self.address = Refusal(
            "address",
            Unavailable(
                f"This address has {bounds.per_address} connections open already, the most that "
                "one may have. Use those, or close some.",
                retry_after_seconds=1,
            ),
        )


@cache  # there are few, and each may be needed thousands of times a second
def rendered(error: GatewayError) -> tuple[bytes, bytes]:
    """Status line and headers, all but those that every answer has; and the body."""
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
