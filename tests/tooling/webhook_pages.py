"""The last section of `docs/webhooks.md`: retries, failures and bounds, from the code."""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from gateway.webhooks.deliveries import RETRY_SECONDS, TRIES
from gateway.webhooks.endpoints import MAX_VALID_SECRETS
from gateway.webhooks.events import OF_OPERATORS, EventType
from gateway.webhooks.targets import DeliveryFailure

PAGE = Path(__file__).resolve().parents[2] / "docs" / "webhooks.md"
MARKER = "<!-- `make generated` writes everything below from gateway/webhooks. -->\n"
MEANINGS = {
    DeliveryFailure.BAD_URL: "the address is none, or has a user name or password",
    DeliveryFailure.NOT_HTTPS: "the address is not https",
    DeliveryFailure.PRIVATE_ADDRESS: "the name leads to an address that is not public",
    DeliveryFailure.UNREACHABLE: "no connection, or the name does not exist",
    DeliveryFailure.BAD_CERTIFICATE: "the receiver's certificate is not trusted",
    DeliveryFailure.BROKEN_OFF: "the connection ended before the answer",
    DeliveryFailure.TIMEOUT: "no answer within `GATEWAY_WEBHOOK_TIMEOUT_SECONDS`",
    DeliveryFailure.REDIRECT: "the answer leads elsewhere, which is not followed",
    DeliveryFailure.BAD_STATUS: "the answer is not 2xx; see `last_status`",
    DeliveryFailure.GONE: "the answer is 410: the webhook is disabled",
    DeliveryFailure.SECRET_UNREADABLE: "the secret cannot be opened with the master key",
    DeliveryFailure.DISABLED: "the webhook was disabled while the delivery was pending",
    DeliveryFailure.ABANDONED: "the workers ended during every attempt",
}
MINUTE, HOUR = 60, 3600


def rendered() -> dict[Path, str]:
    """The text that the page should have."""
    by_hand, _, _ = PAGE.read_text().partition(MARKER)
    return {PAGE: f"{by_hand}{MARKER}{''.join(_sections())}"}


def _sections() -> Iterator[str]:
    yield "\n| event | sent to webhooks of |\n|---|---|\n"
    for event in EventType:
        yield f"| `{event}` | {'operators' if event in OF_OPERATORS else 'operators, tenants'} |\n"
    yield "\n| attempt | after the one before, about | since the event |\n|---|---|---|\n"
    waits = (0, *RETRY_SECONDS)
    for attempt, (wait, since) in enumerate(zip(waits, accumulate(waits), strict=True), start=1):
        yield f"| {attempt} of {TRIES} | {_span(wait)} | {_span(since)} |\n"
    yield "\n| `last_error` | meaning |\n|---|---|\n"
    for failure in DeliveryFailure:
        yield f"| `{failure}` | {MEANINGS[failure]} |\n"
    yield f"\nA webhook has at most {MAX_VALID_SECRETS} valid secrets.\n"


def _span(seconds: int) -> str:
    if seconds == 0:
        return "at once"
    if seconds < MINUTE:
        return f"{seconds} s"
    if seconds < HOUR:
        return f"{seconds // MINUTE} min"
    hours, rest = divmod(seconds, HOUR)
    return f"{hours} h" + (f" {rest // MINUTE} min" if rest >= MINUTE else "")
