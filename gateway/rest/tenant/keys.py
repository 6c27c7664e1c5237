"""The tenant's own API keys. No key makes or shows one that may do more than itself."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from fastapi import Query as InQuery
from pydantic import Field, StrictBool

from gateway.domain import Scope
from gateway.rest.admin.dependencies import (
    JsonBody,
    NoQuery,
    body_of,
    changing_tenant,
    reading_tenant,
)
from gateway.rest.admin.keys import (
    IssuedKeyObject,
    KeyBody,
    KeyChange,
    KeyObject,
    RollBody,
    check_key,
    render_issued,
)
from gateway.rest.admin.schemas import Instant, Listed, PageQuery, left_as_it_is
from gateway.rest.dependencies import ActorDep, GatewayDep, TenantAdmin
from gateway.rest.refusals import refused_with
from gateway.tenancy import api_keys, self_service

router = APIRouter(prefix="/v1/keys", tags=["keys"])


class OwnKeyBody(KeyBody):
    """A key to issue."""

    livemode: StrictBool = Field(
        default=True,
        description="false: a test key. Not sent: the mode of the key in use.",
        json_schema_extra=left_as_it_is,
    )
    scopes: list[str] | None = Field(
        None,
        min_length=1,
        max_length=20,
        description="None named: those of the key in use, but not `tenant:admin`.",
        json_schema_extra={"items": {"type": "string", "enum": [*Scope]}},
    )
    models: list[str] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="None named: those that the key in use may use.",
    )
    user_id: UUID | None = Field(
        None, description="A user of the tenant; none: the user of the key in use, if it has one."
    )
    expires_at: Instant | None = Field(
        None,
        description="Within ten years, and no later than the key in use. null: with that key.",
    )


class KeysQuery(PageQuery):
    """Which keys to show."""

    livemode: bool | None = Field(
        None, description="Not sent: those of the mode of the key in use."
    )


@router.post(
    "",
    summary="Issue a key",
    status_code=201,
    dependencies=[NoQuery],
    openapi_extra=body_of(OwnKeyBody),
    responses=refused_with(404),
)
async def issue_key(
    gateway: GatewayDep,
    caller: TenantAdmin,
    actor: ActorDep,
    body: Annotated[OwnKeyBody, Depends(JsonBody(OwnKeyBody))],
) -> IssuedKeyObject:
    """The answer holds the secret, this once. Scopes, models and expiry are at most those of the
    key in use; a test key makes test keys, a user's key makes keys of that user, and a key with
    budgets or limits of its own makes none.
    """
    check_key(gateway, body)
    async with changing_tenant(gateway, caller.tenant_id, actor) as session:
        issued = await self_service.issue_key(
            session,
            caller,
            pepper=gateway.core.pepper,
            livemode=body.livemode if "livemode" in body.model_fields_set else None,
            name=body.name,
            user_id=body.user_id,
            scopes=body.scopes,
            models=body.models,
            expires_at=body.expires_at,
        )
    return render_issued(issued)


@router.get("", summary="Keys, without secrets")
async def list_keys(
    gateway: GatewayDep, caller: TenantAdmin, query: Annotated[KeysQuery, InQuery()]
) -> Listed[KeyObject]:
    """Newest first, revoked and expired ones among them."""
    livemode = self_service.mode_of(caller, livemode=query.livemode)
    async with reading_tenant(gateway, caller.tenant_id) as session:
        page = await api_keys.list_page(
            session, caller.tenant_id, limit=query.limit, after=query.after, livemode=livemode
        )
    data = [KeyObject.model_validate(key) for key in page.items]
    return Listed[KeyObject].of(data, has_more=page.has_more)


@router.get("/{key_id}", summary="One key, without its secret", dependencies=[NoQuery])
async def get_key(key_id: UUID, gateway: GatewayDep, caller: TenantAdmin) -> KeyObject:
    """The key with this id."""
    async with reading_tenant(gateway, caller.tenant_id) as session:
        return KeyObject.model_validate(await self_service.get_key(session, caller, key_id))


@router.patch(
    "/{key_id}",
    summary="Rename a key",
    dependencies=[NoQuery],
    openapi_extra=body_of(KeyChange),
)
async def rename_key(
    key_id: UUID,
    gateway: GatewayDep,
    caller: TenantAdmin,
    actor: ActorDep,
    body: Annotated[KeyChange, Depends(JsonBody(KeyChange))],
) -> KeyObject:
    """Every key of its line has the name from then on, in reports of the past too."""
    async with changing_tenant(gateway, caller.tenant_id, actor) as session:
        renamed = await self_service.rename_key(session, caller, key_id, body.name)
    return KeyObject.model_validate(renamed)


@router.post(
    "/{key_id}/roll",
    summary="Roll a key",
    status_code=201,
    dependencies=[NoQuery],
    openapi_extra=body_of(RollBody),
)
async def roll_key(
    key_id: UUID,
    gateway: GatewayDep,
    caller: TenantAdmin,
    actor: ActorDep,
    body: Annotated[RollBody, Depends(JsonBody(RollBody))],
) -> IssuedKeyObject:
    """A twin of the key, with its budgets and a secret of its own; the old one ends after the
    grace. The answer holds the twin's secret, this once.
    """
    async with changing_tenant(gateway, caller.tenant_id, actor) as session:
        twin = await self_service.roll_key(
            session,
            caller,
            key_id,
            pepper=gateway.core.pepper,
            grace=timedelta(seconds=body.grace_seconds),
        )
    return render_issued(twin)


@router.delete(
    "/{key_id}", summary="Revoke a key", dependencies=[NoQuery], responses=refused_with(409)
)
async def revoke_key(
    key_id: UUID, gateway: GatewayDep, caller: TenantAdmin, actor: ActorDep
) -> KeyObject:
    """It is refused from the next request on. The last key with `tenant:admin` is not revoked."""
    async with changing_tenant(gateway, caller.tenant_id, actor) as session:
        revoked = await self_service.revoke_key(session, caller, key_id)
    return KeyObject.model_validate(revoked)
