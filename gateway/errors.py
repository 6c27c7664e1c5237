"""The gateway's errors, each a noun with a stable code and a status.

    GatewayError
    ├── InternalError             500 internal_error
    ├── InvalidRequest            400 invalid_value, unknown_parameter, missing_required_parameter,
    │   │                             invalid_http, invalid_host
    │   ├── BodyTooSlow           400 upload_too_slow
    │   ├── ContentRefused        400 moderation_blocked
    │   ├── ImageRefused          400 invalid_image_file, unsupported_file_mimetype
    │   ├── IncompleteBody        400 incomplete_body
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
    ├── AccountRefused            503 provider_unavailable
    ├── NotConfigured             503 no_credential, price_unknown
    ├── CredentialUnreadable      503 credential_unreadable
    ├── Unavailable               503 overloaded, database_unavailable, provider_unavailable,
    │                                 storage_unavailable, identity_provider_unreachable
    └── OutcomeUnknown            504 outcome_unknown

An invalid configuration raises `ConfigurationError`, which names the setting to change.
"""

from collections.abc import Sequence

MAX_MESSAGE_CHARACTERS = 1000
MAX_PARAM_CHARACTERS = 100
"""A refusal quotes at most this many characters of the value that it refuses."""


class GatewayError(Exception):
    """An error with OpenAI's envelope fields; `retry` is None where the client may decide.

    `reason` is for the request record alone: the cause in the gateway's own words, such as the name
    of a limit. It never quotes a client or a provider.
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
    """A defect of the gateway. A paid call may precede it, so clients must not retry."""

    retry = False


class InvalidRequest(GatewayError):
    """The request itself is invalid; `param` names the field."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContentRefused(InvalidRequest):
    """The provider's safety system refused the prompt or an input image."""

    type = "image_generation_user_error"
    code = "moderation_blocked"


class ImageRefused(InvalidRequest):
    """An input image cannot be used; `param` names its field."""

    type = "image_generation_user_error"
    code = "invalid_image_file"


class MalformedAuthorization(InvalidRequest):
    """The Authorization header is repeated, or no key can be read from it."""

    code = "invalid_request"


class ModelRetired(InvalidRequest):
    """OpenAI's own error for a model that it has shut down, word for word."""

    type = "image_generation_user_error"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{model}' does not exist.")


class BodyTooSlow(InvalidRequest):
    """The body exceeded its time limit. The connection is closed, to stop the upload."""

    code = "upload_too_slow"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The request body took longer than {seconds:g} seconds.")


class IncompleteBody(InvalidRequest):
    """The client disconnected before the end of its body, so only the request record has it."""

    code = "incomplete_body"

    def __init__(self) -> None:
        super().__init__("The request body ended too early.")


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
    """The headers are more numerous, or longer, than the gateway reads."""

    status = 431
    code = "headers_too_large"


class RangeNotSatisfiable(InvalidRequest):
    """The requested byte range begins after the end of the file."""

    status = 416
    code = "range_not_satisfiable"


class Unauthenticated(GatewayError):
    """The API key is missing or not valid."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class KeyMissing(Unauthenticated):
    """The request carries no key."""


class InvalidToken(Unauthenticated):
    """The identity provider's token is not valid here, or has expired."""

    code = "invalid_token"


class BudgetExceeded(GatewayError):
    """The worst-case cost of this call exceeds the rest of a budget."""

    status = 402
    type = "insufficient_quota"
    code = "budget_exceeded"
    retry = False


class Forbidden(GatewayError):
    """The key is valid but lacks permission."""

    status = 403
    type = "invalid_request_error"
    code = "insufficient_scope"


class InsufficientScope(Forbidden):
    """The key or token is valid but lacks a scope; any of `scopes` is sufficient."""

    def __init__(self, message: str, *, scopes: Sequence[str]) -> None:
        super().__init__(message)
        self.scopes = tuple(scopes)


class NotFound(GatewayError):
    """The object does not exist, or this caller may not see it."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class IdempotencyInFlight(GatewayError):
    """The first request with this idempotency key is still being processed."""

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
    """The object to create exists already; a retry gets the same answer."""

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
    """The provider's rate limit, or one of the gateway's own (`LimitReached`), is exceeded."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"


class StorageFailed(GatewayError):
    """The image store does not answer; an image that was bought waits in the spool."""

    code = "storage_failed"
    retry = False


class ImageUnfinished(GatewayError):
    """The image was made and paid for, but could not be converted to the requested form."""

    code = "image_unfinished"
    retry = False


class ProviderUnreachable(GatewayError):
    """The connection to the provider failed; nothing was bought."""

    status = 502
    code = "provider_unreachable"


class Unavailable(GatewayError):
    """The gateway cannot serve the request now; nothing was bought."""

    status = 503
    code = "overloaded"


class AccountRefused(GatewayError):
    """The provider refused the operator's own account in an answer that it charged."""

    status = 503
    code = "provider_unavailable"
    retry = False


class NotConfigured(GatewayError):
    """A setting of the operator or the tenant is missing; a retry does not help."""

    status = 503
    code = "not_configured"
    retry = False


class CredentialUnreadable(GatewayError):
    """A stored credential cannot be decrypted: it was altered or moved, or its master key is
    missing.
    """

    status = 503
    code = "credential_unreadable"
    retry = False


class OutcomeUnknown(GatewayError):
    """The provider may have made and billed the image; a retry could pay twice."""

    status = 504
    code = "outcome_unknown"
    retry = False


class ConfigurationError(Exception):
    """An invalid setting; the message names it and says what to do."""


def envelope(error: GatewayError) -> dict[str, dict[str, str | None]]:
    """Render OpenAI's error envelope, which its SDKs turn into the right exceptions."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def response_headers(error: GatewayError) -> dict[str, str]:
    """Build the headers that tell a client if, when and with which key to retry."""
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
