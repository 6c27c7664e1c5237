"""Users of a tenant: the persons and applications that own keys, credentials and budgets."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends
from fastapi import Query as InQuery
from pydantic import Field

from gateway.rest.admin.dependencies import (
    JsonBody,
    NoQuery,
    body_of,
    changing_tenant,
    reading_tenant,
)
from gateway.rest.admin.schemas import (
    USER_ID,
    Body,
    Identified,
    Listed,
    Name,
    PageQuery,
    left_as_it_is,
    with_example,
)
from gateway.rest.dependencies import ActorDep, GatewayDep
from gateway.rest.refusals import refused_with
from gateway.tenancy import erasure, users
from gateway.tenancy.tenants import MAX_NAME_CHARACTERS

router = APIRouter(prefix="/tenants/{tenant_id}/users", tags=["admin: users"])


class UserObject(Identified):
    """A user."""

    model_config = with_example(
        id=USER_ID,
        object="user",
        name="alice",
        status="active",
        created_at="2026-11-21T09:31:00Z",
        deleted_at=None,
    )

    id: UUID
    object: Literal["user"] = "user"
    name: str
    status: Literal["active", "disabled", "deleted"]
    created_at: datetime
    deleted_at: datetime | None


class UserBody(Body):
    """A user to create."""

    model_config = with_example(name="alice")

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARACTERS)


class UserChange(Body):
    """Changes to a user; omitted fields keep their value."""

    model_config = with_example(status="disabled")

    name: Name = Field(
        "",
        description="Tokens that name users must use the new name.",
        json_schema_extra=left_as_it_is,
    )
    status: Literal["active", "disabled"] = Field(
        "active",
        description="`disabled` refuses every key and token of the user from the next request on.",
        json_schema_extra=left_as_it_is,
    )


class UsersQuery(PageQuery):
    """Filters of the user list."""

    name: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_NAME_CHARACTERS,
        description="Only the user with this name.",
    )


@router.post(
    "",
    summary="Create a user",
    status_code=201,
    responses=refused_with(409),
    dependencies=[NoQuery],
    openapi_extra=body_of(UserBody),
)
async def create_user(
    tenant_id: UUID,
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[UserBody, Depends(JsonBody(UserBody))],
) -> UserObject:
    """Create a user. The first token of the operator's identity provider for a new user also
    creates it.
    """
    async with changing_tenant(gateway, tenant_id, actor) as session:
        return UserObject.model_validate(await users.create_user(session, tenant_id, body.name))


@router.get("", summary="List the users of a tenant")
async def list_users(
    tenant_id: UUID, gateway: GatewayDep, query: Annotated[UsersQuery, InQuery()]
) -> Listed[UserObject]:
    """List users, newest first."""
    async with reading_tenant(gateway, tenant_id) as session:
        page = await users.list_users(
            session, tenant_id, limit=query.limit, after=query.after, name=query.name
        )
    data = [UserObject.model_validate(user) for user in page.items]
    return Listed[UserObject].of(data, has_more=page.has_more)


@router.get("/{user_id}", summary="Show a user", dependencies=[NoQuery])
async def get_user(tenant_id: UUID, user_id: UUID, gateway: GatewayDep) -> UserObject:
    """Return the user with this id, even if deleted."""
    async with reading_tenant(gateway, tenant_id) as session:
        return UserObject.model_validate(await users.get(session, tenant_id, user_id))


@router.patch(
    "/{user_id}",
    summary="Rename, disable or enable a user",
    responses=refused_with(409),
    dependencies=[NoQuery],
    openapi_extra=body_of(UserChange),
)
async def change_user(
    tenant_id: UUID,
    user_id: UUID,
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[UserChange, Depends(JsonBody(UserChange))],
) -> UserObject:
    """Change a user. Keys and tokens of a disabled user are refused with 403 `user_disabled`, at
    other gateways within a second.
    """
    async with changing_tenant(gateway, tenant_id, actor) as session:
        changed = await users.change(
            session, tenant_id, user_id, **body.model_dump(exclude_unset=True)
        )
    return UserObject.model_validate(changed)


@router.delete("/{user_id}", summary="Delete a user permanently", dependencies=[NoQuery])
async def delete_user(
    tenant_id: UUID, user_id: UUID, gateway: GatewayDep, actor: ActorDep
) -> UserObject:
    """Delete a user. The user's keys are revoked, and name, provider keys, images and prompts
    erased. Ledger and audit trail are kept. Repeating it changes nothing.
    """
    async with changing_tenant(gateway, tenant_id, actor) as session:
        deleted = await erasure.delete_user(session, tenant_id, user_id)
    return UserObject.model_validate(deleted)
