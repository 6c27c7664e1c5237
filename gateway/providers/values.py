"""Reading of untrusted values in providers' answers: each is checked, bounded and storable."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import orjson

from gateway.provider_answers import ProviderReply
from gateway.redaction import redact

MAX_TOKENS = 1_000_000_000
"""Larger usage is invalid: no call takes a billion tokens."""
MAX_RETRY_AFTER_SECONDS = 3600
MAX_INTEGER_DIGITS = 18
"""Longer ones do not fit 64 bits, and Python refuses to parse integers of thousands of digits."""
MAX_WORD_CHARACTERS = 200
REQUEST_ID_HEADER = "x-request-id"
_CALL_ID = re.compile(r"[\w.:=-]{1,128}", re.ASCII)


def parse_loosely(content: bytes, errors: str = "strict") -> object:
    """Parse JSON, tolerating lone surrogates and numbers such as NaN or very long integers.

    A strict parser would discard an answer that may be paid for. `errors` is the error handler for
    bytes that are not UTF-8.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return orjson.loads(content)
    except ValueError:
        try:
            return _whole(json.loads(content.decode(errors=errors), parse_int=_integer))
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) <= MAX_INTEGER_DIGITS else None


def _whole(value: object) -> object:
    """Replace lone surrogates, which UTF-8 cannot encode."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return value


def well_formed(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean(text: str) -> str:
    """Remove NULs, which Postgres cannot store, and replace lone surrogates.

    Every text of an answer passes here: it may be stored with the call's cost, and must not
    prevent that.
    """
    return well_formed(text).replace("\x00", "")


def whole_number(value: object, *, most: int) -> int | None:
    """Return a whole number from 0 to `most`; None for anything else."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= most else None


def count(value: object) -> int | None:
    """Return a number of tokens; None for anything else."""
    return whole_number(value, most=MAX_TOKENS)


def optional_text(body: Mapping[str, object], name: str) -> str | None:
    """Return a short text such as a size; None for anything else, texts that are too long too."""
    value = body.get(name)
    is_word = isinstance(value, str) and len(value) <= MAX_WORD_CHARACTERS
    return clean(cast("str", value)) if is_word else None


def call_id(given: object) -> str | None:
    """Return the id by which a vendor's support finds a call; None for a malformed one."""
    if not isinstance(given, str) or _CALL_ID.fullmatch(given) is None:
        return None
    return redact(given)


def identified(reply: ProviderReply | None, body: object, name: str) -> ProviderReply | None:
    """Return the reply with the id that the body has under `name`; as it is without one."""
    found = call_id(body.get(name)) if isinstance(body, Mapping) else None
    return reply if reply is None or found is None else replace(reply, request_id=found)
