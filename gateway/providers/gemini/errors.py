"""The meaning of Gemini's errors, and what each may have cost.

https://ai.google.dev/gemini-api/docs/troubleshooting. A status that Google does not describe as a
refusal may have been charged, as may one without Google's error body, which a proxy could send.
"""

import re
from collections.abc import Iterator, Mapping

from gateway.provider_answers import Outcome
from gateway.providers.base import ProviderFailure, Reason
from gateway.providers.values import (
    MAX_RETRY_AFTER_SECONDS,
    clean,
    parse_loosely,
)

UNCHARGED_STATUSES = frozenset({400, 401, 403, 404, 413, 429})
INVALID_KEY = "API_KEY_INVALID"
_REASONS = {
    401: Reason.CREDENTIAL,
    403: Reason.CREDENTIAL,
    404: Reason.MODEL,
    429: Reason.RATE_LIMITED,
}
_DELAY = re.compile(r"([0-9]{1,6})(?:\.[0-9]{1,9})?s", re.ASCII)


def refused(status: int, content: bytes) -> ProviderFailure:
    """Return the failure of an error status; only one with Google's error body costs nothing."""
    error = read_error(content)
    message = error.get("message")
    if status not in UNCHARGED_STATUSES or not isinstance(message, str):
        return ProviderFailure(
            Outcome.AMBIGUOUS, Reason.UNKNOWN, f"The provider answered {status}."
        )
    return ProviderFailure(
        Outcome.REJECTED,
        _reason(status, error),
        clean(message),
        # Without Google's `status`: the codes that clients read are the same for each provider.
        retry_after_seconds=_retry_after(error),
    )


def is_invalid_key(content: bytes) -> bool:
    """Return True if the error says that the key is not valid, which Google answers with 400."""
    return any(detail.get("reason") == INVALID_KEY for detail in _details(read_error(content)))


def read_error(content: bytes) -> Mapping[str, object]:
    """Return the error object of an answer, or an empty one."""
    try:
        body = parse_loosely(content, errors="replace")
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _reason(status: int, error: Mapping[str, object]) -> Reason:
    details = list(_details(error))
    if any(detail.get("reason") == INVALID_KEY for detail in details):
        return Reason.CREDENTIAL
    if error.get("status") == "FAILED_PRECONDITION":  # the account's region or billing
        return Reason.CREDENTIAL
    if any("PerDay" in quota for detail in details for quota in _quotas(detail)):
        return Reason.QUOTA
    return _REASONS.get(status, Reason.INVALID)


def _details(error: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict):
            yield detail


def _quotas(detail: Mapping[str, object]) -> Iterator[str]:
    violations = detail.get("violations")
    for violation in violations if isinstance(violations, list) else ():
        if isinstance(violation, dict):
            yield str(violation.get("quotaId"))


def _retry_after(error: Mapping[str, object]) -> int | None:
    for detail in _details(error):
        form = _DELAY.fullmatch(str(detail.get("retryDelay")))
        if form is not None:
            return min(int(form[1]) + 1, MAX_RETRY_AFTER_SECONDS)
    return None
