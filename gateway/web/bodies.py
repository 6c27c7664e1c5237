"""The body of a request, read up to a bound and in a given time.

Every front reads bodies through this module, so that each failure has one error.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from gateway.errors import BodyTooSlow, IncompleteBody, InvalidRequest, PayloadTooLarge
from gateway.web.instrumentation import Receive, RequestScope

LARGE_BODY_BYTES = 262_144
"""A longer body is large: its request leaves its slot, and MCP parses it off the event loop."""
CONTENT_LENGTH, CONTENT_ENCODING = b"content-length", b"content-encoding"


async def body_parts(
    scope: RequestScope, receive: Receive, *, max_bytes: int, seconds: float, advice: str = ""
) -> AsyncGenerator[bytes, None]:
    """Yield a body's parts as they arrive.

    Raises:
        PayloadTooLarge: the body, or its announced length, exceeds `max_bytes`; the message ends
            with `advice`. An announced length is refused before anything is read.
        BodyTooSlow: the body is incomplete after `seconds`.
        IncompleteBody: the client disconnected before the end.
    """
    announced = _values(scope, CONTENT_LENGTH)
    if any(length.isdigit() and int(length) > max_bytes for length in announced):
        raise body_too_large(max_bytes, advice)
    deadline = asyncio.get_running_loop().time() + seconds
    received_bytes, is_complete = 0, False
    while not is_complete:
        try:
            # Around each part: a deadline around `yield` would cancel the consumer instead.
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise BodyTooSlow(seconds) from None
        if message["type"] == "http.disconnect":
            raise IncompleteBody
        part = message.get("body", b"")
        received_bytes += len(part)
        if received_bytes > max_bytes:
            raise body_too_large(max_bytes, advice)
        is_complete = not message.get("more_body", False)
        if part:
            yield part


async def read_body(
    scope: RequestScope, receive: Receive, *, max_bytes: int, seconds: float
) -> bytearray:
    """Read a body into memory; the errors are those of `body_parts`."""
    content = bytearray()
    parts = body_parts(scope, receive, max_bytes=max_bytes, seconds=seconds)
    async with aclosing(parts):
        async for part in parts:
            content += part
    return content


def refuse_compressed(scope: RequestScope) -> None:
    """Refuse a body with a Content-Encoding: the gateway expands none.

    Raises:
        InvalidRequest: the body is compressed.
    """
    if any(encoding.lower() != b"identity" for encoding in _values(scope, CONTENT_ENCODING)):
        raise InvalidRequest(
            "Compressed request bodies are not supported. Send the body without Content-Encoding.",
            code="unsupported_content_encoding",
        )


def body_too_large(max_bytes: int, advice: str = "") -> PayloadTooLarge:
    """Build the refusal of a body that is longer than the gateway reads."""
    return PayloadTooLarge(f"The request body is larger than {max_bytes} bytes.{advice}")


def _values(scope: RequestScope, name: bytes) -> Iterable[bytes]:
    return (value for key, value in scope["headers"] if key == name)
