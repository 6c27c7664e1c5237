"""Extraction of long strings from a JSON document, so that the rest is parsed in a moment.

A parser holds the interpreter's lock while it runs, in any thread: one that reads 30 MB blocks the
event loop for all of that time. Here a string is decoded in pieces, and the lock is released
between them.
"""

import json
import re
import secrets
import time
from dataclasses import dataclass, field

import pydantic_core

from gateway.errors import InvalidRequest, PayloadTooLarge

LONG_BYTES = 65_536
"""A string longer than this, in its encoded form, is extracted."""
MAX_REST_BYTES = 2_097_152
"""Twice the size of sixteen images of `LONG_BYTES` and a prompt."""
MAX_TEXTS = 100_000
LOCK_SECONDS = 0.002
PAUSE_SECONDS = 0.0005
QUOTE = ord('"')
# The content of a JSON string (RFC 8259, section 7): up to 1024 runs and escapes. A run does not
# end within a character of UTF-8, and the two halves of a surrogate pair stay together.
_PIECE = re.compile(
    rb'(?:[^"\\\x00-\x1f]{1,256}[\x80-\xbf]{0,3}'
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb'|\\u[0-9a-fA-F]{4}|\\["\\/bfnrt]){1,1024}'
)
MAX_PIECE_BYTES = 1024 * (256 + 3)


@dataclass(frozen=True, slots=True)
class Cut:
    """A document whose long strings are replaced by names, and the pieces of these strings."""

    rest: bytearray = field(repr=False)
    texts: dict[str, list[str]] = field(repr=False)

    def restore(self, value: object) -> object:
        """Put the long strings back into the value, and remove them from `texts`."""
        if isinstance(value, str):
            pieces = self.texts.pop(value, None)
            return value if pieces is None else "".join(pieces)
        if isinstance(value, dict):
            return {name: self.restore(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.restore(inner) for inner in value]
        return value


def cut_long_texts(content: bytearray) -> Cut:
    """Extract the long strings from a document, and clear it. Blocks; run it in a thread.

    Raises:
        InvalidRequest: it has too many strings.
        PayloadTooLarge: the rest is still large.
        ValueError: it contains a string that is not valid JSON.
    """
    # Random, so that no string of the document can be mistaken for a name.
    cut, prefix = Cut(bytearray(), {}), secrets.token_hex(16)
    lock = _Lock()
    copied, opening, count = 0, content.find(QUOTE), 0
    while opening >= 0:
        count += 1
        if count > MAX_TEXTS:
            raise InvalidRequest("The JSON body has too many elements.", code="invalid_json")
        spans, closing = _spans(content, opening + 1, lock)
        if closing - opening > LONG_BYTES:
            name = f"{prefix}.{count}"
            _append(cut.rest, content, copied, opening)
            cut.rest.extend(f'"{name}"'.encode())
            cut.texts[name] = [_decode(bytes(content[start:end]), lock) for start, end in spans]
            copied = closing + 1
        opening = content.find(QUOTE, closing + 1)
    _append(cut.rest, content, copied, len(content))
    content.clear()
    return cut


class _Lock:
    """Releases the interpreter's lock to other threads after a time."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def share(self) -> None:
        if time.monotonic() - self._since > LOCK_SECONDS:
            # Not 0: this thread would mostly take the lock again itself.
            time.sleep(PAUSE_SECONDS)
            self._since = time.monotonic()


def _spans(content: bytearray, start: int, lock: _Lock) -> tuple[list[tuple[int, int]], int]:
    """Find the pieces of the string that begins here, and the position of its closing quote."""
    spans = []
    while (piece := _PIECE.match(content, start)) is not None:
        spans.append(piece.span())
        start = piece.end()
        lock.share()
    if start >= len(content) or content[start] != QUOTE:
        raise ValueError("A string does not end, or contains invalid characters.")
    return spans, start


def _decode(piece: bytes, lock: _Lock) -> str:
    quoted = b'"%b"' % piece
    try:
        text = pydantic_core.from_json(quoted)
    except ValueError:
        text = json.loads(quoted)  # it accepts lone surrogates: some clients cut emoji in half
    lock.share()
    return str(text)


def _append(rest: bytearray, content: bytearray, start: int, end: int) -> None:
    if len(rest) + end - start > MAX_REST_BYTES:
        raise PayloadTooLarge(
            f"The request is larger than {MAX_REST_BYTES} bytes without the strings in it that are "
            f"longer than {LONG_BYTES} bytes, such as data: URLs. Only those may be large."
        )
    rest += content[start:end]
