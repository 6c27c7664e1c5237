"""API keys of a tenant: issue, roll and revoke. A secret is in one answer and never shown again."""

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
    """An API key, without its secret."""

    model_config = with_example(**EXAMPLE)

    id: UUID
    object: Literal["api_key"] = "api_key"
    root_id: UUID = Field(
        description="Id of the first key of a rolled line; budgets and reports use it for all."
    )
    name: str | None = Field(description="Shared by all keys of the line.")
    user_id: UUID | None
    livemode: bool
    last4: str
    scopes: list[str]
    models: list[str] | None = Field(description="null: every model.")
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


class IssuedKeyObject(KeyObject):
    """A new key, with its secret."""

    model_config = with_example(**EXAMPLE, secret="igw_live_…")  # noqa: S106 - an example

    secret: str = Field(repr=False, description="Store it now: it is not shown again.")


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

    name: Name | None = Field(None, description="Shown with the id; need not be unique.")
    user_id: UUID | None = Field(
        None, description="A user of the tenant; omitted: the tenant itself."
    )
    livemode: StrictBool = Field(default=True, description="false: a test key, for the sandbox.")
    scopes: list[str] | None = Field(
        None,
        min_length=1,
        max_length=20,
        description="Default: all but `tenant:admin`.",
        json_schema_extra={"items": {"type": "string", "enum": [*Scope]}},
    )
    models: list[str] | None = Field(
        None, min_length=1, max_length=100, description="Default: every model."
    )
    expires_at: Instant | None = Field(None, description="At most ten years ahead. null: never.")


class KeyChange(Body):
    """Changes to a key."""

    model_config = with_example(name="website")

    name: Name | None = Field(description="null: remove the name.")


class RollKeyBody(Body):
    """Options for rolling a key."""

    model_config = with_example(grace_seconds=86_400)

    grace_seconds: StrictInt = Field(
        86_400,
        ge=0,
        le=int(MAX_GRACE.total_seconds()),
        description="Remaining validity of the old key; its own expiry still applies.",
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
    """Issue a key. The answer contains its secret, which is not shown again."""
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


@router.get("", summary="List the keys of a tenant, without secrets")
async def list_keys(
    tenant_id: UUID, gateway: GatewayDep, query: Annotated[PageQuery, InQuery()]
) -> Listed[KeyObject]:
    """List keys, newest first, including revoked and expired ones."""
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
    """Rename a key and all keys of its line; reports about the past show the new name too."""
    async with changing_tenant(gateway, tenant_id, actor) as session:
        return KeyObject.model_validate(await api_keys.rename(session, key_id, body.name))


@router.post(
    "/{key_id}/roll",
    summary="Roll a key",
    status_code=201,
    dependencies=[NoQuery],
    openapi_extra=body_of(RollKeyBody),
)
async def roll_key(
    tenant_id: UUID,
    key_id: UUID,
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[RollKeyBody, Depends(JsonBody(RollKeyBody))],
) -> IssuedKeyObject:
    """Create a successor with the same budgets and a new secret; the old key ends after the grace
    period. The answer contains the new secret, which is not shown again.
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
    """Revoke a key, from the next request on; at other gateways within a second. It stays in the
    list, and its usage stays in the reports.
    """
    async with changing_tenant(gateway, tenant_id, actor) as session:
        return KeyObject.model_validate(await api_keys.revoke(session, key_id))


def check_key(gateway: Gateway, body: KeyBody) -> None:
    """Refuse unknown models, and an expiry in the past."""
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
    """Render the key with its secret."""
    shown = KeyObject.model_validate(issued)
    return IssuedKeyObject(**shown.model_dump(), secret=issued.secret.reveal())
