"""The documentation of refusals: one shared response per status, with examples of its codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.errors import (
    BudgetExceeded,
    Conflict,
    ContentRefused,
    CredentialRejected,
    Forbidden,
    GatewayError,
    IdempotencyConflict,
    IdempotencyInFlight,
    ImageUnfinished,
    InsufficientScope,
    InvalidRequest,
    NotConfigured,
    NotFound,
    OutcomeUnknown,
    PayloadTooLarge,
    ProviderUnreachable,
    RangeNotSatisfiable,
    RateLimited,
    StorageFailed,
    Unauthenticated,
    Unavailable,
    envelope,
)

JsonSchema = dict[str, object]
ON_EVERY_REFUSAL = ("X-Request-Id", "X-Client-Request-Id", "X-Gateway-Generation-Id")
"""The third is sent if money was reserved for the request before it was refused."""


@dataclass(frozen=True, slots=True)
class DocumentedRefusal:
    """The refusals of one status: component name, description, examples and headers."""

    name: str
    description: str
    examples: Sequence[GatewayError]
    headers: Sequence[str] = ()


REFUSALS: Mapping[int, DocumentedRefusal] = {
    400: DocumentedRefusal(
        "BadRequest",
        "The request itself is invalid; `param` names the field. Change it before a retry.",
        (
            InvalidRequest("Unknown parameter: 'sise'.", code="unknown_parameter", param="sise"),
            InvalidRequest(
                "Invalid 'n': integer above maximum value. Expected a value <= 10, but got 11 "
                "instead.",
                code="integer_above_max_value",
                param="n",
            ),
            InvalidRequest("limit: Input should be less than or equal to 100.", param="limit"),
            ContentRefused("Your request was rejected by the safety system."),
        ),
    ),
    401: DocumentedRefusal(
        "Unauthenticated",
        "The key is missing, malformed, unknown, revoked or expired.",
        (Unauthenticated("This API key is unknown, or it was revoked."),),
        ("WWW-Authenticate",),
    ),
    402: DocumentedRefusal(
        "BudgetExceeded",
        "The worst-case cost of this call exceeds the rest of a budget; the message names the "
        "budget and when it resets. Nothing was bought.",
        (
            BudgetExceeded(
                "The tenant's budget per month of 50.00 USD has 0.002 USD left, less than this "
                "call can cost at most. It begins anew at 2026-12-01T00:00:00+00:00."
            ),
        ),
        ("X-Should-Retry",),
    ),
    403: DocumentedRefusal(
        "Forbidden",
        "The key is valid but lacks permission; or an image link is invalid or has expired.",
        (
            InsufficientScope(
                "This API key lacks the scope images:write; it has: images:read.",
                scopes=("images:write",),
            ),
            Forbidden("This tenant is suspended.", code="tenant_suspended"),
            Forbidden("The user of this key is disabled.", code="user_disabled"),
            Forbidden("This image link has expired.", code="link_expired"),
        ),
    ),
    404: DocumentedRefusal(
        "NotFound",
        "The object does not exist, or this key may not see it.",
        (
            NotFound("The model 'dall-e-4' does not exist.", code="model_not_found", param="model"),
            NotFound("There is no tenant 019aa5f2-7c00-7000-8000-000000000000.", param="tenant_id"),
        ),
    ),
    409: DocumentedRefusal(
        "Conflict",
        "The first request with this idempotency key is still being processed; or the object to "
        "create exists already.",
        (
            IdempotencyInFlight("A request with this idempotency key is still being answered."),
            Conflict("There is a tenant 'acme' already.", param="name"),
        ),
        ("Retry-After", "X-Should-Retry"),
    ),
    413: DocumentedRefusal(
        "PayloadTooLarge",
        "The body is larger than the gateway reads.",
        (PayloadTooLarge("The request body is larger than 1048576 bytes."),),
    ),
    416: DocumentedRefusal(
        "RangeNotSatisfiable",
        "The file ends before the range begins; `Content-Range` has its size.",
        (RangeNotSatisfiable("The file has 1024 bytes."),),
        ("Content-Range",),
    ),
    422: DocumentedRefusal(
        "IdempotencyConflict",
        "The idempotency key was used for another request. Nothing was bought.",
        (
            IdempotencyConflict(
                "This idempotency key was used for another request.", param="idempotency_key"
            ),
        ),
        ("X-Should-Retry",),
    ),
    424: DocumentedRefusal(
        "CredentialRejected",
        "The provider refused the tenant's own key. The house credential is not used instead.",
        (CredentialRejected("The provider refused your own openai key."),),
        ("X-Should-Retry",),
    ),
    429: DocumentedRefusal(
        "RateLimited",
        "A limit of the gateway, named in the message, or of the provider. Nothing was bought.",
        (RateLimited("The key's limit of 60 requests a minute is reached."),),
        ("Retry-After", "X-Should-Retry", "RateLimit", "RateLimit-Policy"),
    ),
    500: DocumentedRefusal(
        "InternalError",
        "The image was made and paid for but cannot be delivered as requested; or the gateway has "
        "a defect, logged under `X-Request-Id`. Do not retry.",
        (
            StorageFailed("The image was made and could not be stored."),
            ImageUnfinished("The image was made and could not be brought to the asked size."),
        ),
        ("X-Should-Retry",),
    ),
    502: DocumentedRefusal(
        "ProviderUnreachable",
        "The connection to the provider failed. Nothing was bought.",
        (ProviderUnreachable("The provider cannot be reached."),),
    ),
    503: DocumentedRefusal(
        "Unavailable",
        "The gateway cannot serve this now, or lacks a setting. Nothing was bought.",
        (
            Unavailable("The gateway is at its limit.", retry_after_seconds=1),
            Unavailable(
                "The gateway's database is not available right now.", code="database_unavailable"
            ),
            Unavailable(
                "The image store does not respond, so no link to an image can be given.",
                code="storage_unavailable",
                retry_after_seconds=10,
            ),
            NotConfigured("No openai key is configured.", code="no_credential"),
        ),
        ("Retry-After", "X-Should-Retry"),
    ),
    504: DocumentedRefusal(
        "OutcomeUnknown",
        "The provider may have made and billed the image; the ledger will show it. Do not retry "
        "without the same idempotency key.",
        (OutcomeUnknown("The outcome of this call is not known."),),
        ("X-Should-Retry",),
    ),
}


def refused_with(*statuses: int) -> dict[int | str, dict[str, object]]:
    """Document the refusals of a route, beside those that every route has."""
    return {status: {"$ref": reference(status)} for status in statuses}


def reference(status: int) -> str:
    """The reference to the shared response of a status."""
    return f"#/components/responses/{REFUSALS[status].name}"


def shared_responses() -> dict[str, JsonSchema]:
    """The components by name."""
    return {refusal.name: _response(refusal) for refusal in REFUSALS.values()}


def _response(refusal: DocumentedRefusal) -> JsonSchema:
    # Two examples may share a code: the later one is shown.
    examples = {error.code: {"value": envelope(error)} for error in refusal.examples}
    return {
        "description": refusal.description,
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"}
            for name in (*ON_EVERY_REFUSAL, *refusal.headers)
        },
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/ErrorAnswer"},
                "examples": examples,
            }
        },
    }
