"""Takes the long texts out of a JSON document, so that what is left is parsed in a moment.

A parser holds the interpreter's lock for as long as it runs, in whichever thread: one that reads
30 MB keeps the event loop waiting for all of that time. Here a text is decoded in pieces, between
which the lock is given up.
"""

import json
import re
import secrets
import time
from dataclasses import dataclass, field

import pydantic_core

from gateway.errors import InvalidRequest, PayloadTooLarge

LONG_BYTES = 65_536
"""A text that is longer than this, as it is written, is taken out."""
MAX_REST_BYTES = 2_097_152
"""For sixteen pictures of `LONG_BYTES` and a prompt there is room twice over."""
MAX_TEXTS = 100_000
LOCK_SECONDS = 0.002
PAUSE_SECONDS = 0.0005
QUOTE = ord('"')
# What JSON allows within a text (RFC 8259, section 7): up to 1024 runs and escapes. A run does not
# end within a character of UTF-8, and the two halves of a surrogate pair stay together.
_PIECE = re.compile(
    rb'(?:[^"\\\x00-\x1f]{1,256}[\x80-\xbf]{0,3}'
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb'|\\u[0-9a-fA-F]{4}|\\["\\/bfnrt]){1,1024}'
)
MAX_PIECE_BYTES = 1024 * (256 + 3)


@dataclass(frozen=True, slots=True)
class Cut:
    """A document whose long texts are replaced by names, and the pieces of each of those texts."""

    rest: bytearray = field(repr=False)
    texts: dict[str, list[str]] = field(repr=False)

    def restore(self, value: object) -> object:
        """The same value with its long texts in place, which `texts` then lacks."""
        if isinstance(value, str):
            pieces = self.texts.pop(value, None)
            return value if pieces is None else "".join(pieces)
        if isinstance(value, dict):
            return {name: self.restore(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.restore(inner) for inner in value]
        return value


def cut_long_texts(content: bytearray) -> Cut:
    """Cut the long texts out of a document, which is cleared. Blocks; for a thread.

    Raises:
        InvalidRequest: it has too many texts.
        PayloadTooLarge: without them it is still large.
        ValueError: a text in it is no valid JSON.
    """
    # Random, so that no text of the document can be taken for a name.
    cut, prefix = Cut(bytearray(), {}), secrets.token_hex(16)
    lock = _Lock()
    copied, opening, count = 0, content.find(QUOTE), 0
    while opening >= 0:
        count += 1
        if count > MAX_TEXTS:
            raise InvalidRequest("The JSON body has too many parts.", code="invalid_json")
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
    """Gives the interpreter's lock to other threads where it was held for a while."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def share(self) -> None:
        if time.monotonic() - self._since > LOCK_SECONDS:
            # Not 0, at which this thread would mostly be the one that takes it again.
            time.sleep(PAUSE_SECONDS)
            self._since = time.monotonic()


def _spans(content: bytearray, start: int, lock: _Lock) -> tuple[list[tuple[int, int]], int]:
    """The pieces of the text that begins here, and where its closing quotation mark is."""
    spans = []
    while (piece := _PIECE.match(content, start)) is not None:
        spans.append(piece.span())
        start = piece.end()
        lock.share()
    if start >= len(content) or content[start] != QUOTE:
        raise ValueError("A text does not end, or holds what none may hold.")
    return spans, start


def _decode(piece: bytes, lock: _Lock) -> str:
    quoted = b'"%b"' % piece
    try:
        text = pydantic_core.from_json(quoted)
    except ValueError:
        text = json.loads(quoted)  # it takes lone surrogates, as clients cut emoji in half
    lock.share()
    return str(text)


def _append(rest: bytearray, content: bytearray, start: int, end: int) -> None:
    if len(rest) + end - start > MAX_REST_BYTES:
        raise PayloadTooLarge(
            f"The request is larger than {MAX_REST_BYTES} bytes without the texts in it that are "
            f"longer than {LONG_BYTES} bytes, such as data: URLs. Only those may be large."
        )
    rest += content[start:end]
