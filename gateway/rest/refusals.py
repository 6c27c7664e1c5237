"""The documentation of refusals: one shared response per status, with examples of its codes.

Each example is built by the code that refuses, so that it has the words of a real answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from gateway.billing.reserving import budget_refusal
from gateway.catalog.loading import unknown_model
from gateway.db.engine import DatabaseUnavailable
from gateway.domain import LimitKind, RateLimit, Scope, StorageState
from gateway.errors import GatewayError, Unavailable, envelope
from gateway.generation.failures import client_error, kept_unfinished, not_stored
from gateway.generation.idempotency import in_flight, used_otherwise
from gateway.generation.parameters import above_maximum, unknown_parameter
from gateway.generation.results import unfinished
from gateway.library.links import expired_link
from gateway.library.store_health import store_away
from gateway.limits.enforcement import limit_reached
from gateway.load.gate import BUSY
from gateway.money import parse_usd
from gateway.providers.sandbox.provider import magic_failure
from gateway.rest.byte_ranges import beyond_end
from gateway.rest.errors import invalid_field
from gateway.tenancy.credentials import no_credential
from gateway.tenancy.key_lookup import unknown_key
from gateway.tenancy.tenants import name_taken, not_active, unknown_tenant
from gateway.web.authentication import insufficient_scope
from gateway.web.bodies import body_too_large

JsonSchema = dict[str, object]
IMAGE_ID = "img_19aa8c1e5d0_0123456789abcdef0123456789abcdef"
ON_EVERY_REFUSAL = ("X-Request-Id", "X-Client-Request-Id", "X-Gateway-Generation-Id")
"""The third is sent if money was reserved for the request before it was refused."""


@dataclass(frozen=True, slots=True)
class DocumentedRefusal:
    """The refusals of one status: component name, description, examples and headers."""

    name: str
    description: str
    examples: Sequence[GatewayError]
    headers: Sequence[str] = ()


def _of_provider(magic_word: str) -> GatewayError:
    """Build the refusal after a provider's failure, as the sandbox triggers it."""
    return client_error(
        magic_failure(magic_word), house_credential=False, provider="openai", model=""
    )


REFUSALS: Mapping[int, DocumentedRefusal] = {
    400: DocumentedRefusal(
        "BadRequest",
        "The request itself is invalid; `param` names the field. Change it before a retry.",
        (
            unknown_parameter("sise"),
            above_maximum("n", 11, 10),
            invalid_field("limit", "Input should be less than or equal to 100", "less_than_equal"),
            _of_provider("[sandbox:moderation]"),
        ),
    ),
    401: DocumentedRefusal(
        "Unauthenticated",
        "The key is missing, malformed, unknown, revoked or expired.",
        (unknown_key(),),
        ("WWW-Authenticate",),
    ),
    402: DocumentedRefusal(
        "BudgetExceeded",
        "The worst-case cost of this call exceeds the rest of a budget; the message names the "
        "budget and when it resets. Nothing was bought.",
        (
            budget_refusal(
                "tenant",
                "month",
                limit_nano=parse_usd("50"),
                available_nano=parse_usd("0.002"),
                resets_at=datetime(2026, 12, 1, tzinfo=UTC),
            ),
        ),
        ("X-Should-Retry",),
    ),
    403: DocumentedRefusal(
        "Forbidden",
        "The key is valid but lacks permission; or an image link is invalid or has expired.",
        (
            insufficient_scope("API key", [Scope.IMAGES_READ], needed=[Scope.IMAGES_WRITE]),
            not_active("suspended"),
            not_active("user_disabled"),
            expired_link(),
        ),
    ),
    404: DocumentedRefusal(
        "NotFound",
        "The object does not exist, or this key may not see it.",
        (
            unknown_model("dall-e-4"),
            unknown_tenant(UUID("019aa5f2-7c00-7000-8000-000000000000")),
        ),
    ),
    409: DocumentedRefusal(
        "Conflict",
        "The first request with this idempotency key is still being processed; or the object to "
        "create exists already.",
        (
            in_flight(),
            name_taken("acme"),
        ),
        ("Retry-After", "X-Should-Retry"),
    ),
    413: DocumentedRefusal(
        "PayloadTooLarge",
        "The body is larger than the gateway reads.",
        (body_too_large(1_048_576),),
    ),
    416: DocumentedRefusal(
        "RangeNotSatisfiable",
        "The file ends before the range begins; `Content-Range` has its size.",
        (beyond_end(1024),),
        ("Content-Range",),
    ),
    422: DocumentedRefusal(
        "IdempotencyConflict",
        "The idempotency key was used for another request. Nothing was bought.",
        (used_otherwise(),),
        ("X-Should-Retry",),
    ),
    424: DocumentedRefusal(
        "CredentialRejected",
        "The provider refused the tenant's own key. The house credential is not used instead.",
        (_of_provider("[sandbox:credential]"),),
        ("X-Should-Retry",),
    ),
    429: DocumentedRefusal(
        "RateLimited",
        "A limit of the gateway, named in the message, or of the provider. Nothing was bought.",
        (
            limit_reached(
                RateLimit("key", LimitKind.REQUESTS, 60), standings=(), cost=1, wait_seconds=1
            ),
        ),
        ("Retry-After", "X-Should-Retry", "RateLimit", "RateLimit-Policy"),
    ),
    500: DocumentedRefusal(
        "InternalError",
        "The image was made and paid for but cannot be delivered as requested; or the gateway has "
        "a defect, logged under `X-Request-Id`. Do not retry.",
        (
            not_stored(
                UUID("019aa5f6-4d00-7000-8000-000000000000"),
                [IMAGE_ID],
                StorageState.SPOOLED,
                has_key=False,
            ),
            kept_unfinished(unfinished(512, 512, "UnusableImage"), [IMAGE_ID]),
        ),
        ("X-Should-Retry",),
    ),
    502: DocumentedRefusal(
        "ProviderUnreachable",
        "The connection to the provider failed. Nothing was bought.",
        (_of_provider("[sandbox:unreachable]"),),
    ),
    503: DocumentedRefusal(
        "Unavailable",
        "The gateway cannot serve this now, or lacks a setting. Nothing was bought.",
        (
            Unavailable(BUSY, retry_after_seconds=1),
            DatabaseUnavailable(),
            store_away(is_spool_full=False),
            no_credential("openai"),
        ),
        ("Retry-After", "X-Should-Retry"),
    ),
    504: DocumentedRefusal(
        "OutcomeUnknown",
        "The provider may have made and billed the image; the ledger will show it. Do not retry "
        "without the same idempotency key.",
        (_of_provider("[sandbox:unknown]"),),
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
