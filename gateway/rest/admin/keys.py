"""API keys of a tenant: issued, rolled and revoked; a secret is in one answer and never again."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends
from fastapi import Query as InQuery
from pydantic import Field, JsonValue, StrictBool, StrictInt

from gateway.bootstrap import Gateway
from gateway.domain import Scope
from gateway.errors import InvalidRequest, NotFound
from gateway.rest.admin.dependencies import (
    JsonBody,
    NoQuery,
    body_of,
    changing_tenant,
    reading_tenant,
)
from gateway.rest.admin.schemas import (
    KEY_ID,
    USER_ID,
    Body,
    Identified,
    Instant,
    Listed,
    Name,
    PageQuery,
    with_example,
)
from gateway.rest.dependencies import ActorDep, GatewayDep
from gateway.tenancy import api_keys
from gateway.tenancy.api_keys import MAX_GRACE, IssuedKey

router = APIRouter(prefix="/tenants/{tenant_id}/keys", tags=["admin: keys"])
EXAMPLE: dict[str, JsonValue] = {
    "id": KEY_ID,
    "object": "api_key",
    "root_id": KEY_ID,
    "name": "website",
    "user_id": USER_ID,
    "livemode": True,
    "last4": "x7Qa",
    "scopes": ["images:read", "images:write"],
    "models": ["gpt-image-2.5-flare"],
    "expires_at": "2027-11-21T00:00:00Z",
    "revoked_at": None,
    "created_at": "2026-11-21T09:32:00Z",
}


class KeyObject(Identified):
    """What may be shown of a key."""

    model_config = with_example(**EXAMPLE)

    id: UUID
    object: Literal["api_key"] = "api_key"
    root_id: UUID = Field(
        description="The first of a line of rolled keys: budgets and reports name it for all."
    )
    name: str | None = Field(description="One for all keys of the line.")
    user_id: UUID | None
    livemode: bool
    last4: str
    scopes: list[str]
    models: list[str] | None = Field(description="null: every model.")
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


class IssuedKeyObject(KeyObject):
    """A new key."""

    model_config = with_example(**EXAMPLE, secret="igw_live_…")  # noqa: S106 - the form of one

    secret: str = Field(
        repr=False, description="Keep it now: it is in this answer and nowhere else."
    )


class KeyBody(Body):
    """A key to issue."""

    model_config = with_example(
        name="website",
        user_id=USER_ID,
        livemode=True,
        scopes=["images:read", "images:write"],
        models=["gpt-image-2.5-flare"],
        expires_at="2027-11-21T00:00:00Z",
    )

    name: Name | None = Field(None, description="Shown beside the id; need not be unique.")
    user_id: UUID | None = Field(None, description="A user of the tenant; none: the tenant's own.")
    livemode: StrictBool = Field(default=True, description="false: a test key, for the sandbox.")
    scopes: list[str] | None = Field(
        None,
        min_length=1,
        max_length=20,
        description="All but `tenant:admin`, where none are named.",
        json_schema_extra={"items": {"type": "string", "enum": [*Scope]}},
    )
    models: list[str] | None = Field(
        None, min_length=1, max_length=100, description="Every model, where none are named."
    )
    expires_at: Instant | None = Field(None, description="Within ten years. null: never.")


class KeyChange(Body):
    """What to change of a key."""

    model_config = with_example(name="website")

    name: Name | None = Field(description="null: it has no name.")


class RollBody(Body):
    """How to roll a key."""

    model_config = with_example(grace_seconds=86_400)

    grace_seconds: StrictInt = Field(
        86_400,
        ge=0,
        le=int(MAX_GRACE.total_seconds()),
        description="How long the old key stays valid; never longer than it would have been.",
    )


@router.post(
    "",
    summary="Issue a key",
    status_code=201,
    dependencies=[NoQuery],
    openapi_extra=body_of(KeyBody),
)
async def issue_key(
    tenant_id: UUID,
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[KeyBody, Depends(JsonBody(KeyBody))],
) -> IssuedKeyObject:
    """The answer holds the secret, this once."""
    check_key(gateway, body)
    async with changing_tenant(gateway, tenant_id, actor) as session:
        issued = await api_keys.issue(
            session,
            tenant_id,
            pepper=gateway.core.pepper,
            livemode=body.livemode,
            name=body.name,
            user_id=body.user_id,
            scopes=body.scopes,
            models=body.models,
            expires_at=body.expires_at,
        )
    return render_issued(issued)


@router.get("", summary="Keys of a tenant, without secrets")
async def list_keys(
    tenant_id: UUID, gateway: GatewayDep, query: Annotated[PageQuery, InQuery()]
) -> Listed[KeyObject]:
    """Newest first, revoked and expired ones among them."""
    async with reading_tenant(gateway, tenant_id) as session:
        page = await api_keys.list_page(session, tenant_id, limit=query.limit, after=query.after)
    data = [KeyObject.model_validate(key) for key in page.items]
    return Listed[KeyObject].of(data, has_more=page.has_more)


@router.patch(
    "/{key_id}",
    summary="Rename a key",
    dependencies=[NoQuery],
    openapi_extra=body_of(KeyChange),
)
async def rename_key(
    tenant_id: UUID,
    key_id: UUID,
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[KeyChange, Depends(JsonBody(KeyChange))],
) -> KeyObject:
    """Every key of its line has the name from then on, in reports of the past too."""
    async with changing_tenant(gateway, tenant_id, actor) as session:
        return KeyObject.model_validate(await api_keys.rename(session, key_id, body.name))


@router.post(
    "/{key_id}/roll",
    summary="Roll a key",
    status_code=201,
    dependencies=[NoQuery],
    openapi_extra=body_of(RollBody),
)
async def roll_key(
    tenant_id: UUID,
    key_id: UUID,
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[RollBody, Depends(JsonBody(RollBody))],
) -> IssuedKeyObject:
    """A twin of the key, with its budgets and a secret of its own; the old one ends after the
    grace. The answer holds the twin's secret, this once.
    """
    async with changing_tenant(gateway, tenant_id, actor) as session:
        twin = await api_keys.roll(
            session,
            key_id,
            pepper=gateway.core.pepper,
            grace=timedelta(seconds=body.grace_seconds),
        )
    return render_issued(twin)


@router.delete("/{key_id}", summary="Revoke a key", dependencies=[NoQuery])
async def revoke_key(
    tenant_id: UUID, key_id: UUID, gateway: GatewayDep, actor: ActorDep
) -> KeyObject:
    """It is refused from the next request on, by other gateways within a second. It stays in the
    list, and what it was used for in the reports.
    """
    async with changing_tenant(gateway, tenant_id, actor) as session:
        return KeyObject.model_validate(await api_keys.revoke(session, key_id))


def check_key(gateway: Gateway, body: KeyBody) -> None:
    """Refuse models that are none, and an end in the past."""
    strange = sorted(set(body.models or ()) - set(gateway.core.catalog.models))
    if strange:
        raise NotFound(
            f"There is no model {strange[0]!r}. GET /v1/models lists them.",
            code="model_not_found",
            param="models",
        )
    if body.expires_at is not None and body.expires_at <= datetime.now(UTC):
        raise InvalidRequest(
            f"expires_at must be in the future (got {body.expires_at.isoformat()}).",
            param="expires_at",
        )


def render_issued(issued: IssuedKey) -> IssuedKeyObject:
    """The key with its secret."""
    shown = KeyObject.model_validate(issued)
    return IssuedKeyObject(**shown.model_dump(), secret=issued.secret.reveal())
