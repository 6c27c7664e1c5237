"""A request's body as JSON-RPC: invalid ids are refused, large arguments are kept apart.

The protocol's library copies a body four times and parses and validates it on the event loop. It
gets a large call without its arguments, which stay in the request's state for the tool.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson
import pydantic_core

from gateway.errors import InvalidRequest, PayloadTooLarge
from gateway.mcp_server.long_texts import MAX_REST_BYTES, Cut, cut_long_texts
from gateway.web.bodies import LARGE_BODY_BYTES

MAX_PARTS = 100_000
"""Limit on commas and brackets, also within strings: each may become an object of a hundred
bytes."""
UNREADABLE = b"{"
"""Passed to the library in place of a large body that is not JSON, for it to refuse."""
Arguments = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class MessageBody:
    """The message for the protocol's library, and the arguments removed from it, if any."""

    content: bytes = field(repr=False)
    method: str | None = None
    arguments: Arguments | None = field(default=None, repr=False)


async def read_message(content: bytearray) -> MessageBody:
    """Parse a body, and clear it; a large one is parsed off the event loop.

    Raises:
        InvalidRequest: it has too many elements, or an id of an invalid type.
        PayloadTooLarge: a part other than a tool's arguments is large.
    """
    if len(content) > LARGE_BODY_BYTES:
        return await asyncio.to_thread(_read_large, content)
    _check_parts(content)
    try:
        message = pydantic_core.from_json(content)
    except ValueError:
        return MessageBody(bytes(content))  # the library reports the error
    return MessageBody(bytes(content), _method(message))


def _read_large(content: bytearray) -> MessageBody:
    try:
        # What may be left after cutting may also be parsed without: it takes a quarter of the time.
        is_cut = len(content) > MAX_REST_BYTES
        cut = cut_long_texts(content) if is_cut else Cut(content, {})
        _check_parts(cut.rest)
        message = _parse(cut.rest)
        content.clear()
        method = _method(message)
        arguments = _detach_arguments(message, cut) if method == "tools/call" else None
    except (ValueError, RecursionError):
        return MessageBody(UNREADABLE)
    if cut.texts:
        raise _too_large()
    return MessageBody(_serialized(message), method, arguments)


def _detach_arguments(message: object, cut: Cut) -> Arguments | None:
    params = message.get("params") if isinstance(message, dict) else None
    arguments = params.get("arguments") if isinstance(params, dict) else None
    if not isinstance(params, dict) or not isinstance(arguments, dict):
        return None
    params["arguments"] = {}
    return {name: cut.restore(value) for name, value in arguments.items()}


def _parse(content: bytearray) -> object:
    try:
        return pydantic_core.from_json(content)
    except ValueError:
        # The standard library is slower, but accepts lone surrogates, from emoji cut in half.
        return json.loads(content)


def _serialized(message: object) -> bytes:
    """Serialize the message without its large part.

    Raises:
        PayloadTooLarge: the rest is still large.
    """
    try:
        content = orjson.dumps(message)
    except orjson.JSONEncodeError:  # a lone surrogate, or an integer beyond 64 bits
        raise InvalidRequest(
            "A large request may contain lone surrogates or integers beyond 64 bits only in a "
            "tool's arguments. Remove them from the rest.",
            code="invalid_json",
        ) from None
    if len(content) > LARGE_BODY_BYTES:
        raise _too_large()
    return content


def _too_large() -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The request is larger than {LARGE_BODY_BYTES} bytes without the tool's arguments. "
        "Only the arguments may be large."
    )


def _check_parts(content: bytearray) -> None:
    if len(content) > MAX_PARTS and sum(map(content.count, (b",", b"[", b"{"))) > MAX_PARTS:
        raise InvalidRequest("The JSON body has too many elements.", code="invalid_json")


def _method(message: object) -> str | None:
    """The method of a request or notification.

    The library treats a request whose id it cannot read as a notification, so its client would get
    no answer. MCP allows strings and integers (2026-07-28, basic, requests); JSON-RPC 2.0 also null
    and fractions, but discourages them (section 4).

    Raises:
        InvalidRequest: its id has another type.
    """
    if not isinstance(message, dict) or not isinstance(message.get("method"), str):
        return None
    given = message.get("id", "")
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise InvalidRequest(
            "The id of a request must be a string or an integer "
            f"(got {json.dumps(given)[:40]}). A notification has no id.",
            code="invalid_request_id",
            param="id",
        )
    method: str = message["method"]
    return method
