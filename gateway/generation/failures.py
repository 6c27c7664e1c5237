"""The errors that a client gets when no image was made, or no link to one can be given."""

from collections.abc import Sequence
from uuid import UUID

from gateway import telemetry
from gateway.domain import StorageState
from gateway.errors import (
    AccountRefused,
    ContentRefused,
    CredentialRejected,
    GatewayError,
    ImageUnfinished,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    ProviderUnreachable,
    RateLimited,
    StorageFailed,
    Unavailable,
)
from gateway.provider_answers import Outcome
from gateway.providers.base import ProviderFailure, Reason
from gateway.redaction import redact

MAX_MESSAGE_CHARACTERS = 500
OPERATORS_TROUBLE = frozenset({Reason.CREDENTIAL, Reason.QUOTA, Reason.MODEL})
"""Refusals that concern a house credential and not the request."""


def client_error(  # noqa: PLR0911 - a table, one line a case
    failure: ProviderFailure, *, house_credential: bool, provider: str, model: str
) -> GatewayError:
    """Render a failure for the client.

    A failure of the house credential is never reported as one of the client's own key.
    """
    if failure.outcome is Outcome.NOT_SENT:
        return ProviderUnreachable("The provider cannot be reached. Nothing was bought; try again.")
    if failure.outcome is Outcome.AMBIGUOUS:
        return OutcomeUnknown(
            f"{failure.message} It is not known yet if the image was made and billed, so the "
            "request is not repeated. The usage report will show the cost once it is known."
        )
    if failure.outcome is Outcome.SUCCESS:
        return ImageUnfinished(
            f"{redact(failure.message)} The call was paid for; its cost is recorded."
        )
    message = redact(failure.message)[:MAX_MESSAGE_CHARACTERS]
    match failure.reason:
        case Reason.MODERATION:
            return ContentRefused(message, code=failure.code)
        case Reason.RATE_LIMITED:
            return RateLimited(
                "The provider's rate limit is reached. Try again later.",
                retry_after_seconds=failure.retry_after_seconds or 1,
            )
        case Reason.CREDENTIAL | Reason.QUOTA if not house_credential:
            return CredentialRejected(
                "The provider rejected your own key "
                f"({'its quota is used up' if failure.reason is Reason.QUOTA else 'not valid'}). "
                f"Replace it with PUT /v1/credentials/{provider}."
            )
        case Reason.MODEL if not house_credential:
            return NotFound(message, code="model_not_found", param="model")
        case Reason.CREDENTIAL | Reason.QUOTA | Reason.MODEL:
            telemetry.alarm("house_credential", reason=failure.reason, model=model)
            told = (
                "The provider does not serve this gateway right now. Its operator has been alerted."
            )
            if failure.outcome is Outcome.REFUSED_CHARGED:
                return AccountRefused(f"{told} The refusal was charged.")
            return Unavailable(
                f"{told} Nothing was bought.", code="provider_unavailable", retry_after_seconds=60
            )
        case _:
            return InvalidRequest(message, code=failure.code, param=failure.param)


def shutting_down() -> Unavailable:
    """Build the refusal of a call that a gateway would begin while it shuts down."""
    return Unavailable(
        "This gateway is shutting down. Nothing was bought; try again.", retry_after_seconds=1
    )


def is_served_elsewhere(failure: ProviderFailure, *, house_credential: bool) -> bool:
    """Tell if another model may be asked: surely not charged, and not the client's fault.

    A tenant's own key that is refused is the tenant's to replace.
    """
    if failure.outcome is Outcome.NOT_SENT:
        return True
    if failure.outcome is not Outcome.REJECTED:
        return False
    if failure.reason is Reason.RATE_LIMITED:
        return True
    return house_credential and failure.reason in OPERATORS_TROUBLE


def kept_unfinished(error: ImageUnfinished, image_ids: Sequence[str]) -> ImageUnfinished:
    """Return the error of unfinished images with the ids under which they are kept, if any."""
    if not image_ids:
        return error
    ids = ", ".join(image_ids)
    return ImageUnfinished(f"{error.message} As it was made, it is kept as {ids}.")


def not_stored(
    generation_id: UUID, image_ids: Sequence[str], kept: StorageState, *, has_key: bool
) -> StorageFailed:
    """Return the error that says how to get the images without buying them again.

    `has_key`: the request has an idempotency key, under which it may be repeated.
    """
    made = f"The image was made and its cost recorded as generation {generation_id}, but "
    if kept is StorageState.LOST:
        return StorageFailed(
            f"{made}it could not be stored, so there is no link to it. Ask for "
            "response_format=b64_json, which needs no storage."
        )
    made += "the image store does not respond, so no link can be given yet."
    ids = ", ".join(image_ids)
    again = "GET /v1/images/{id} returns it"
    if has_key:
        again = "The same request with the same idempotency key, or GET /v1/images/{id}, returns it"
    return StorageFailed(
        f"{made} It is kept as {ids} until the store accepts it. {again}; do not buy it again."
        if kept is StorageState.SPOOLED
        else f"{made} The gateway tries for another minute to keep it as {ids}. {again} if that "
        "succeeds."
    )
