"""OpenAI's rate limits, as the headers of each answer tell them. Pure.

https://developers.openai.com/api/docs/guides/rate-limits
"""

import re
from collections.abc import Iterator, Mapping

from gateway.provider_answers import ProviderLimit

KINDS = ("requests", "tokens", "images", "input-images")
MAX_DIGITS = 15
MAX_RESET_SECONDS = 604_800.0
_RESET = re.compile(
    r"(?:(\d{1,4})d)?(?:(\d{1,4})h)?(?:(\d{1,4})m(?!s))?(?:(\d{1,6}(?:\.\d{1,9})?)s)?"
    r"(?:(\d{1,9}(?:\.\d{1,9})?)ms)?",
    re.ASCII,
)
_UNITS = (86_400.0, 3600.0, 60.0, 1.0, 0.001)


def read_limits(headers: Mapping[str, str]) -> tuple[ProviderLimit, ...]:
    """Read the limits that the headers name completely; malformed ones are left out."""
    return tuple(_found(headers))


def _found(headers: Mapping[str, str]) -> Iterator[ProviderLimit]:
    for kind in KINDS:
        limit = _number(headers.get(f"x-ratelimit-limit-{kind}"))
        remaining = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
        if limit and remaining is not None:
            reset_seconds = _seconds(headers.get(f"x-ratelimit-reset-{kind}"))
            yield ProviderLimit(kind, limit, min(remaining, limit), reset_seconds)


def _number(text: str | None) -> int | None:
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > MAX_DIGITS:
        return None
    return int(text)


def _seconds(text: str | None) -> float:
    """Parse a duration such as `6m0s` or `12ms`; a minute if there is none that can be read."""
    form = _RESET.fullmatch(text or "")
    if not text or form is None:
        return 60.0
    parts = (float(part or 0) * unit for part, unit in zip(form.groups(), _UNITS, strict=True))
    return min(sum(parts), MAX_RESET_SECONDS)
