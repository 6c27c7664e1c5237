"""The errors that a client gets when no image was made, or none can be linked to."""

from collections.abc import Sequence
from uuid import UUID

from gateway import telemetry
from gateway.domain import ImageRequest, Kept, Outcome, StoredImage
from gateway.errors import (
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
from gateway.providers.base import ProviderFailure, Reason

MAX_MESSAGE_CHARACTERS = 500


def client_error(  # noqa: PLR0911 - a table, one line a case
    failure: ProviderFailure, *, house_credential: bool, model: str
) -> GatewayError:
    """Render a failure for the client; the house's own trouble is never presented as his."""
    if failure.outcome is Outcome.NOT_SENT:
        return ProviderUnreachable("The provider cannot be reached. Nothing was bought; try again.")
    if failure.outcome is Outcome.AMBIGUOUS:
        return OutcomeUnknown(
            f"{failure.message} Whether the image was made and billed is not known yet, so it is "
            "not bought again. The cost will stand in the usage report once it is."
        )
    if failure.outcome is Outcome.SUCCESS:
        return ImageUnfinished(f"{failure.message} It was paid for, and its cost is recorded.")
    message = telemetry.redact(failure.message)[:MAX_MESSAGE_CHARACTERS]
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
                "The provider refused your own key "
                f"({'its quota is used up' if failure.reason is Reason.QUOTA else 'not valid'}). "
                "Replace it with PUT /v1/credentials/openai."
            )
        case Reason.MODEL if not house_credential:
            return NotFound(message, code="model_not_found", param="model")
        case Reason.CREDENTIAL | Reason.QUOTA | Reason.MODEL:
            telemetry.alarm("house_credential", reason=failure.reason, model=model)
            return Unavailable(
                "The provider does not serve this gateway right now. Its operator has been "
                "alerted. Nothing was bought.",
                code="provider_unavailable",
                retry_after_seconds=60,
            )
        case _:
            return InvalidRequest(message, code=failure.code, param=failure.param)


def not_stored(
    generation_id: UUID, request: ImageRequest, images: Sequence[StoredImage], kept: Kept
) -> StorageFailed:
    """Say that there is no link yet, and how to get the image without buying it again."""
    made = f"The image was made and its cost recorded as generation {generation_id}, but "
    if kept is Kept.LOST:
        return StorageFailed(
            f"{made}it could not be stored, so there is no link to it. Ask for "
            "response_format=b64_json, which needs no storage."
        )
    made += "the image store does not answer, so no link can be given yet."
    ids = ", ".join(image.id for image in images)
    again = "GET /v1/images/{id} gives it"
    if request.idempotency is not None:
        again = "The same request with the same idempotency key, or GET /v1/images/{id}, gives it"
    return StorageFailed(
        f"{made} It is kept as {ids} until the store takes it. {again}; do not buy it again."
        if kept is Kept.SPOOLED
        else f"{made} The gateway tries for a minute more to keep it as {ids}. {again} if that "
        "succeeds."
    )
