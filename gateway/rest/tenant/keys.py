"""The tenant's own API keys. A key cannot create or show one with more permissions than its own."""

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
)
from gateway.rest.admin.keys import (
    IssuedKeyObject,
    KeyBody,
    KeyChange,
    KeyObject,
    RollKeyBody,
    check_key,
    render_issued,
)
from gateway.rest.admin.schemas import Instant, Listed, PageQuery, left_as_it_is
from gateway.rest.dependencies import ActorDep, GatewayDep, TenantAdmin
from gateway.rest.refusals import refused_with
from gateway.rest.tenant.transactions import changing_own, reading_own
from gateway.tenancy import api_keys, self_service

router = APIRouter(prefix="/v1/keys", tags=["keys"])


class OwnKeyBody(KeyBody):
    """A key to issue."""

    livemode: StrictBool = Field(
        default=True,
        description="false: a test key. Default: the mode of the key in use.",
        json_schema_extra=left_as_it_is,
    )
    scopes: list[str] | None = Field(
        None,
        min_length=1,
        max_length=20,
        description="Default: those of the key in use, except `tenant:admin`.",
        json_schema_extra={"items": {"type": "string", "enum": [*Scope]}},
    )
    models: list[str] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Default: the models of the key in use.",
    )
    user_id: UUID | None = Field(
        None,
        description="A user of the tenant. Default: the user of the key in use, if it has one.",
    )
    expires_at: Instant | None = Field(
        None,
        description="At most ten years ahead, and no later than the key in use (the default).",
    )


class KeysQuery(PageQuery):
    """Filters of the key list."""

    livemode: bool | None = Field(None, description="Default: the mode of the key in use.")


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
    """Issue a key. The answer contains its secret, which is not shown again. Scopes, models and
    expiry are at most those of the key in use; a test key creates test keys only, a user's key
    creates keys of that user, and a key with budgets or limits of its own cannot create keys.
    """
    check_key(gateway, body)
    async with changing_own(gateway, caller.tenant_id, actor) as session:
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


@router.get("", summary="List keys, without secrets")
async def list_keys(
    gateway: GatewayDep, caller: TenantAdmin, query: Annotated[KeysQuery, InQuery()]
) -> Listed[KeyObject]:
    """List keys, newest first, including revoked and expired ones."""
    livemode = self_service.mode_of(caller, livemode=query.livemode)
    async with reading_own(gateway, caller.tenant_id) as session:
        page = await api_keys.list_page(
            session, caller.tenant_id, limit=query.limit, after=query.after, livemode=livemode
        )
    data = [KeyObject.model_validate(key) for key in page.items]
    return Listed[KeyObject].of(data, has_more=page.has_more)


@router.get("/{key_id}", summary="Show a key, without its secret", dependencies=[NoQuery])
async def get_key(key_id: UUID, gateway: GatewayDep, caller: TenantAdmin) -> KeyObject:
    """Return the key with this id."""
    async with reading_own(gateway, caller.tenant_id) as session:
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
    """Rename a key and all keys of its line; reports about the past show the new name too."""
    async with changing_own(gateway, caller.tenant_id, actor) as session:
        renamed = await self_service.rename_key(session, caller, key_id, body.name)
    return KeyObject.model_validate(renamed)


@router.post(
    "/{key_id}/roll",
    summary="Roll a key",
    status_code=201,
    dependencies=[NoQuery],
    openapi_extra=body_of(RollKeyBody),
)
async def roll_key(
    key_id: UUID,
    gateway: GatewayDep,
    caller: TenantAdmin,
    actor: ActorDep,
    body: Annotated[RollKeyBody, Depends(JsonBody(RollKeyBody))],
) -> IssuedKeyObject:
    """Create a successor with the same budgets and a new secret; the old key ends after the grace
    period. The answer contains the new secret, which is not shown again.
    """
    async with changing_own(gateway, caller.tenant_id, actor) as session:
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
    """Revoke a key, from the next request on. The last key with `tenant:admin` cannot be revoked.
    It stays in the list.
    """
    async with changing_own(gateway, caller.tenant_id, actor) as session:
        revoked = await self_service.revoke_key(session, caller, key_id)
    return KeyObject.model_validate(revoked)
