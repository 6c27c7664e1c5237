"""Everything that the gateway refuses or reports, as nouns with a stable code and a status.

    GatewayError
    ├── InternalError             500 internal_error
    ├── InvalidRequest            400 invalid_value, unknown_parameter, missing_required_parameter,
    │   │                             invalid_http, invalid_host
    │   ├── BodyTooSlow           400 upload_too_slow
    │   ├── ContentRefused        400 moderation_blocked
    │   ├── ImageRefused          400 invalid_image_file, unsupported_file_mimetype
    │   ├── MalformedAuthorization 400 invalid_request
    │   ├── ModelRetired          400 invalid_value
    │   ├── RequestTooSlow        408 request_too_slow
    │   ├── PayloadTooLarge       413 payload_too_large
    │   ├── UrlTooLong            414 url_too_long
    │   ├── RangeNotSatisfiable   416 range_not_satisfiable
    │   └── HeadersTooLarge       431 headers_too_large
    ├── Unauthenticated           401 invalid_api_key
    │   ├── KeyMissing            401 invalid_api_key
    │   └── InvalidToken          401 invalid_token
    ├── BudgetExceeded            402 budget_exceeded
    ├── Forbidden                 403 insufficient_scope, model_not_allowed, tenant_suspended,
    │   │                             tenant_deleted, tenant_unknown, user_deleted, user_disabled
    │   └── InsufficientScope     403 insufficient_scope
    ├── NotFound                  404 not_found, model_not_found, tenant_deleted, user_deleted
    ├── Conflict                  409 already_exists
    ├── CredentialRejected        424 credential_rejected
    ├── RateLimited               429 rate_limit_exceeded
    ├── StorageFailed             500 storage_failed
    ├── ImageUnfinished           500 image_unfinished
    ├── ProviderUnreachable       502 provider_unreachable, provider_error
    ├── NotConfigured             503 no_credential, price_unknown
    ├── CredentialUnreadable      503 credential_unreadable
    ├── Unavailable               503 overloaded, database_unavailable, provider_unavailable,
    │                                 storage_unavailable, identity_provider_unreachable
    └── OutcomeUnknown            504 outcome_unknown

Configuration that cannot work raises `ConfigurationError`, which names the setting to mend.
"""

from collections.abc import Sequence

MAX_MESSAGE_CHARACTERS = 1000
MAX_PARAM_CHARACTERS = 100
"""A refusal quotes what it refuses, but does not grow with it."""


class GatewayError(Exception):
    """A refusal with OpenAI's envelope fields; `retry` is None where the client may decide.

    `reason` is for the request record alone: what was in the way, in the gateway's own words, such
    as the name of a limit. It quotes nothing that a client or a provider said.
    """

    status = 500
    type = "server_error"
    code = "internal_error"
    retry: bool | None = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: int | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message[:MAX_MESSAGE_CHARACTERS]
        self.code = code or type(self).code
        self.reason = reason
        self.param = None if param is None else param[:MAX_PARAM_CHARACTERS]
        self.retry_after_seconds = retry_after_seconds
        self.replayed = False


class InternalError(GatewayError):
    """A defect of ours. It may have come after a call was paid for, so it is not tried again."""

    retry = False


class InvalidRequest(GatewayError):
    """The request itself is wrong; `param` names the field."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContentRefused(InvalidRequest):
    """The provider's safety system refused the prompt or the picture."""

    type = "image_generation_user_error"
    code = "moderation_blocked"


class ImageRefused(InvalidRequest):
    """An input image cannot be used; `param` names the field it came in."""

    type = "image_generation_user_error"
    code = "invalid_image_file"


class MalformedAuthorization(InvalidRequest):
    """There is an Authorization header, or more than one, and no key can be read from it."""

    code = "invalid_request"


class ModelRetired(InvalidRequest):
    """OpenAI's own answer for a model it has shut down, word for word."""

    type = "image_generation_user_error"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{model}' does not exist.")


class BodyTooSlow(InvalidRequest):
    """The body takes longer than the gateway waits; its connection is closed, or it would go on."""

    code = "upload_too_slow"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The request body took longer than {seconds:g} seconds.")


class PayloadTooLarge(InvalidRequest):
    """The body is larger than the gateway reads."""

    status = 413
    code = "payload_too_large"


class RequestTooSlow(InvalidRequest):
    """The request's headers were not complete in time."""

    status = 408
    code = "request_too_slow"


class UrlTooLong(InvalidRequest):
    """The request's URL is longer than the gateway reads."""

    status = 414
    code = "url_too_long"


class HeadersTooLarge(InvalidRequest):
    """There are more headers, or longer ones, than the gateway reads."""

    status = 431
    code = "headers_too_large"


class RangeNotSatisfiable(InvalidRequest):
    """Bytes were asked for that lie behind the end of the file."""

    status = 416
    code = "range_not_satisfiable"


class Unauthenticated(GatewayError):
    """No key, or none that opens anything."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class KeyMissing(Unauthenticated):
    """Nothing was sent that could be a key."""


class InvalidToken(Unauthenticated):
    """A token of the identity provider that is not valid here, or not any more."""

    code = "invalid_token"


class BudgetExceeded(GatewayError):
    """The worst case of this call does not fit into what a budget has left."""

    status = 402
    type = "insufficient_quota"
    code = "budget_exceeded"
    retry = False


class Forbidden(GatewayError):
    """The key is valid but may not do this."""

    status = 403
    type = "invalid_request_error"
    code = "insufficient_scope"


class InsufficientScope(Forbidden):
    """The key or token is valid and lacks a scope; any of `scopes` would do."""

    def __init__(self, message: str, *, scopes: Sequence[str]) -> None:
        super().__init__(message)
        self.scopes = tuple(scopes)


class NotFound(GatewayError):
    """No such thing, or none that this caller may see."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class IdempotencyInFlight(GatewayError):
    """The first request with this idempotency key has not been answered yet."""

    status = 409
    type = "invalid_request_error"
    code = "idempotency_in_flight"


class IdempotencyConflict(GatewayError):
    """The idempotency key was used for another request."""

    status = 422
    type = "invalid_request_error"
    code = "idempotency_conflict"
    retry = False


class Conflict(GatewayError):
    """What is to be made is there already; a second attempt would find the same."""

    status = 409
    type = "invalid_request_error"
    code = "already_exists"
    retry = False


class CredentialRejected(GatewayError):
    """The provider refused the tenant's own key."""

    status = 424
    type = "invalid_request_error"
    code = "credential_rejected"
    retry = False


class RateLimited(GatewayError):
    """Too many requests, says the provider, or a limit of the gateway's own (`LimitReached`)."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"


class StorageFailed(GatewayError):
    """The store does not answer; where an image was bought, it waits in the spool."""

    code = "storage_failed"
    retry = False


class ImageUnfinished(GatewayError):
    """The image was made and paid for, and could not be brought to the form that was asked for."""

    code = "image_unfinished"
    retry = False


class ProviderUnreachable(GatewayError):
    """No connection to the provider came about; nothing was bought."""

    status = 502
    code = "provider_unreachable"


class Unavailable(GatewayError):
    """The gateway cannot serve this now; nothing was bought."""

    status = 503
    code = "overloaded"


class NotConfigured(GatewayError):
    """The operator or the tenant has something to set up first; trying again does not help."""

    status = 503
    code = "not_configured"
    retry = False


class CredentialUnreadable(GatewayError):
    """A stored credential does not open: it was changed, moved, or its master key is missing."""

    status = 503
    code = "credential_unreadable"
    retry = False


class OutcomeUnknown(GatewayError):
    """The provider may have made and billed the image; buying again could pay twice."""

    status = 504
    code = "outcome_unknown"
    retry = False


class ConfigurationError(Exception):
    """A setting that cannot work; the message names it and says what to do."""


def envelope(error: GatewayError) -> dict[str, dict[str, str | None]]:
    """OpenAI's error envelope, which its SDKs turn into the right exceptions."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def response_headers(error: GatewayError) -> dict[str, str]:
    """What tells a client whether, when and with what to try again."""
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.retry is not None:
        headers["X-Should-Retry"] = str(error.retry).lower()
    if error.replayed:
        headers["Idempotent-Replayed"] = "true"
    if isinstance(error, BodyTooSlow):
        headers["Connection"] = "close"
    if error.status == Unauthenticated.status:
        headers["WWW-Authenticate"] = 'Bearer realm="image-gateway"'
    return headers
