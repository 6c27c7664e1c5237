"""The meaning of the errors of an operator's own hosts, and what each may have cost. Pure.

A mesh in front of a server answers with the same statuses: only an error in the server's own words
says that no image was made.
"""

from collections.abc import Mapping

from gateway.domain import SecretText
from gateway.provider_answers import Outcome
from gateway.providers.base import ProviderFailure, Reason
from gateway.providers.values import (
    MAX_INTEGER_DIGITS,
    MAX_RETRY_AFTER_SECONDS,
    clean,
    parse_loosely,
)

UNCHARGED_STATUSES = frozenset({400, 401, 403, 404, 413, 422, 429})
UNAVAILABLE = 503
NOT_READY = "not ready"
NOT_READY_SECONDS = 30
MAX_WORDS = 500
REDACTED = "[redacted]"
_REASONS = {
    401: Reason.CREDENTIAL,
    403: Reason.CREDENTIAL,
    404: Reason.MODEL,
    429: Reason.RATE_LIMITED,
}


def refused(status: int, headers: Mapping[str, str], content: bytes) -> ProviderFailure:
    """Return the failure of an error status; only one with the server's own words costs nothing."""
    message = read_message(content)
    if status == UNAVAILABLE and message is not None and NOT_READY in message.lower():
        # Of the server itself, before it has run anything.
        return ProviderFailure(
            Outcome.REJECTED,
            Reason.RATE_LIMITED,
            message,
            retry_after_seconds=retry_after(headers) or NOT_READY_SECONDS,
        )
    if status not in UNCHARGED_STATUSES or message is None:
        return ProviderFailure(
            Outcome.AMBIGUOUS, Reason.UNKNOWN, f"The provider answered {status}."
        )
    return ProviderFailure(
        Outcome.REJECTED,
        _REASONS.get(status, Reason.INVALID),
        message,
        retry_after_seconds=retry_after(headers),
    )


def redact(failure: ProviderFailure, credential: SecretText) -> None:
    """Take the credential out of a failure's words: no pattern knows the tokens of hosts."""
    secret = credential.reveal()
    if secret:
        failure.message = failure.message.replace(secret, REDACTED)


def read_message(content: bytes) -> str | None:
    """Return the words of `{"error": …}` or `{"detail": …}`; None without one of them."""
    try:
        body = parse_loosely(content, errors="replace")
    except ValueError:
        return None
    if not isinstance(body, dict):
        return None
    for name in ("error", "detail"):
        words = _words(body.get(name))
        if words:
            return words
    return None


def _words(value: object) -> str:
    """Return a text, the message of an object, or those of a list (a failed validation)."""
    if isinstance(value, str):
        return clean(value)[:MAX_WORDS]
    if isinstance(value, dict):
        return _words(value.get("message") or value.get("msg"))
    if isinstance(value, list):
        return "; ".join(filter(None, map(_words, value[:5])))[:MAX_WORDS]
    return ""


def retry_after(headers: Mapping[str, str]) -> int | None:
    """Return the seconds of `Retry-After`; None if it names none."""
    text = headers.get("Retry-After", "")
    if not (text.isascii() and text.isdecimal()) or len(text) > MAX_INTEGER_DIGITS:
        return None
    return min(int(text), MAX_RETRY_AFTER_SECONDS)
