"""Users of a tenant: the persons and applications that keys, credentials and budgets can be for."""

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
from gateway.rest.admin.schemas import USER_ID, Body, Identified, Listed, PageQuery, with_example
from gateway.rest.dependencies import ActorDep, GatewayDep
from gateway.rest.refusals import refused_with
from gateway.tenancy import users
from gateway.tenancy.tenants import MAX_NAME_CHARACTERS

router = APIRouter(prefix="/tenants/{tenant_id}/users", tags=["admin: users"])


class UserObject(Identified):
    """A user."""

    model_config = with_example(
        id=USER_ID, object="user", name="alice", created_at="2026-11-21T09:31:00Z"
    )

    id: UUID
    object: Literal["user"] = "user"
    name: str
    created_at: datetime


class UserBody(Body):
    """A user to make."""

    model_config = with_example(name="alice")

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARACTERS)


class UsersQuery(PageQuery):
    """Which users to show."""

    name: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_NAME_CHARACTERS,
        description="Only the one of this name.",
    )


@router.post(
    "",
    summary="Make a user",
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
    """Users also come into being with their first token of the operator's identity provider."""
    async with changing_tenant(gateway, tenant_id, actor) as session:
        return UserObject.model_validate(await users.create_user(session, tenant_id, body.name))


@router.get("", summary="Users of a tenant")
async def list_users(
    tenant_id: UUID, gateway: GatewayDep, query: Annotated[UsersQuery, InQuery()]
) -> Listed[UserObject]:
    """Newest first."""
    async with reading_tenant(gateway, tenant_id) as session:
        page = await users.list_users(
            session, tenant_id, limit=query.limit, after=query.after, name=query.name
        )
    data = [UserObject.model_validate(user) for user in page.items]
    return Listed[UserObject].of(data, has_more=page.has_more)
