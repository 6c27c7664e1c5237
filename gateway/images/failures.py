"""What a client is told when a provider did not make its image."""

from gateway import telemetry
from gateway.domain import Outcome
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
