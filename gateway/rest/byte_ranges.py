"""Conditional and range requests (RFC 9110, sections 13 and 14): pure functions of headers."""

import re

from gateway.errors import RangeNotSatisfiable

_ONE_RANGE = re.compile(r"bytes=[ \t]*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))[ \t]*")


def is_fresh(if_none_match: str | None, etag: str) -> bool:
    """Return True if the client has this representation already (weak comparison, as for GET)."""
    if if_none_match is None:
        return False
    known = [tag.strip() for tag in if_none_match.split(",")]
    return "*" in known or etag in {tag.removeprefix("W/") for tag in known}


def parse_range(
    wanted: str | None, if_range: str | None, *, etag: str, size_bytes: int
) -> tuple[int, int] | None:
    """Compute the bytes to send, as first and end offset; None for the whole file.

    Several ranges, units other than bytes and invalid ranges are ignored, as the RFC allows; so is
    a range of a representation that has changed (`If-Range`, strong comparison).

    Raises:
        RangeNotSatisfiable: the range begins after the end.
    """
    if wanted is None or (if_range is not None and if_range.strip() != etag):
        return None
    form = _ONE_RANGE.fullmatch(wanted.strip())
    if form is None:
        return None
    first, last, suffix = form.groups()
    if suffix is not None:
        start, stop = max(0, size_bytes - int(suffix)), size_bytes
    else:
        start = int(first)
        stop = min(size_bytes, int(last) + 1) if last else size_bytes
        if last and int(last) < start:
            return None
    if start >= stop:
        raise beyond_end(size_bytes)
    return start, stop


def beyond_end(size_bytes: int) -> RangeNotSatisfiable:
    """Build the refusal of a range that begins after the end of the file."""
    return RangeNotSatisfiable(f"The file has {size_bytes} bytes.")
