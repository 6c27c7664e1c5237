"""The tenant's own users: the persons and applications that own keys and budgets."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from fastapi import Query as InQuery

from gateway.rest.admin.dependencies import (
    JsonBody,
    NoQuery,
    body_of,
)
from gateway.rest.admin.schemas import Listed
from gateway.rest.admin.users import UserBody, UserChange, UserObject, UsersQuery
from gateway.rest.dependencies import ActorDep, GatewayDep, TenantAdmin
from gateway.rest.refusals import refused_with
from gateway.rest.tenant.transactions import changing_own, reading_own
from gateway.tenancy import self_service, users

router = APIRouter(prefix="/v1/users", tags=["users"])


@router.post(
    "",
    summary="Create a user",
    status_code=201,
    responses=refused_with(409),
    dependencies=[NoQuery],
    openapi_extra=body_of(UserBody),
)
async def create_user(
    gateway: GatewayDep,
    caller: TenantAdmin,
    actor: ActorDep,
    body: Annotated[UserBody, Depends(JsonBody(UserBody))],
) -> UserObject:
    """Create a user. The first token of the operator's identity provider for a new user also
    creates it.
    """
    async with changing_own(gateway, caller.tenant_id, actor) as session:
        made = await users.create_user(session, caller.tenant_id, body.name)
    return UserObject.model_validate(made)


@router.get("", summary="Users")
async def list_users(
    gateway: GatewayDep, caller: TenantAdmin, query: Annotated[UsersQuery, InQuery()]
) -> Listed[UserObject]:
    """List users, newest first."""
    async with reading_own(gateway, caller.tenant_id) as session:
        page = await users.list_users(
            session, caller.tenant_id, limit=query.limit, after=query.after, name=query.name
        )
    data = [UserObject.model_validate(user) for user in page.items]
    return Listed[UserObject].of(data, has_more=page.has_more)


@router.get("/{user_id}", summary="Show a user", dependencies=[NoQuery])
async def get_user(user_id: UUID, gateway: GatewayDep, caller: TenantAdmin) -> UserObject:
    """Return the user with this id, even if deleted."""
    async with reading_own(gateway, caller.tenant_id) as session:
        return UserObject.model_validate(await users.get(session, caller.tenant_id, user_id))


@router.patch(
    "/{user_id}",
    summary="Rename, disable or enable a user",
    responses=refused_with(409),
    dependencies=[NoQuery],
    openapi_extra=body_of(UserChange),
)
async def change_user(
    user_id: UUID,
    gateway: GatewayDep,
    caller: TenantAdmin,
    actor: ActorDep,
    body: Annotated[UserChange, Depends(JsonBody(UserChange))],
) -> UserObject:
    """Change a user. Keys and tokens of a disabled user are refused with 403 `user_disabled`. Needs
    a live key.
    """
    changes = users.UserChanges(**body.model_dump(exclude_unset=True))
    async with changing_own(gateway, caller.tenant_id, actor) as session:
        changed = await self_service.change_user(session, caller, user_id, changes)
    return UserObject.model_validate(changed)


@router.delete("/{user_id}", summary="Delete a user permanently", dependencies=[NoQuery])
async def delete_user(
    user_id: UUID, gateway: GatewayDep, caller: TenantAdmin, actor: ActorDep
) -> UserObject:
    """Delete a user. The user's keys are revoked, and name, provider keys, images and prompts
    erased. Ledger and audit trail are kept. Repeating it changes nothing. Needs a live key.
    """
    async with changing_own(gateway, caller.tenant_id, actor) as session:
        deleted = await self_service.delete_user(session, caller, user_id)
    return UserObject.model_validate(deleted)
