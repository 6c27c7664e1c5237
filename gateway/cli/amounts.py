"""Durations and sizes as users write them on the command line."""

import re
from datetime import timedelta

import typer

_DURATION = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)
_SIZE = re.compile(r"(\d{1,18})\s?(b|[kmgt]i?b|)", re.ASCII | re.IGNORECASE)
_BYTES: dict[str, int] = {"": 1, "b": 1} | {
    f"{letter}{infix}b": base**power
    for infix, base in (("", 1000), ("i", 1024))
    for power, letter in enumerate("kmgt", start=1)
}
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(text: str) -> timedelta:
    """Read `90d`, `24h`, `30m`, `45s` or `2w`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a duration such as 90d, 24h or 30m")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def parse_bytes(text: str) -> int:
    """Read `10GB`, `512 MiB` or a plain number of bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a size such as 10GB, 512MiB or 1000000")
    return int(match[1]) * _BYTES[match[2].lower()]


def format_bytes(count: int) -> str:
    """Format as `10 GB`: in the largest unit that needs no fraction."""
    for unit in ("TB", "TiB", "GB", "GiB", "MB", "MiB", "kB", "KiB"):
        size = _BYTES[unit.lower()]
        if count and count % size == 0:
            return f"{count // size} {unit}"
    return f"{count} B"


def format_seconds(seconds: int) -> str:
    """Format as `30d`: in the largest unit that needs no fraction."""
    for unit in ("w", "d", "h", "m"):
        size = int(timedelta(**{_UNITS[unit]: 1}).total_seconds())
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
