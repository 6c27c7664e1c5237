"""Limits of a tenant: requests and images per minute, concurrent generations."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Response
from fastapi import Query as InQuery
from pydantic import Field, StrictBool, StrictInt

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
    NumberedPageQuery,
    RowId,
    with_example,
)
from gateway.rest.dependencies import ActorDep, GatewayDep
from gateway.tenancy import limit_rows
from gateway.tenancy.limit_rows import MAX_VALUE, StoredLimit

router = APIRouter(prefix="/tenants/{tenant_id}/limits", tags=["admin: limits"])
Kind = Literal["requests", "images", "concurrent"]


class LimitObject(Identified):
    """A limit: requests or images per minute, or concurrent generations."""

    model_config = with_example(
        id="9",
        object="limit",
        owner="user",
        api_key_id=None,
        api_key_name=None,
        user_id=USER_ID,
        user_name="alice",
        livemode=True,
        kind="images",
        value=20,
        created_at="2026-11-21T09:34:00Z",
        updated_at="2026-11-21T09:34:00Z",
    )

    id: str
    object: Literal["limit"] = "limit"
    owner: Literal["tenant", "user", "key"]
    api_key_id: UUID | None = Field(
        description="Id of the first key of the line, if it was rolled."
    )
    api_key_name: str | None
    user_id: UUID | None
    user_name: str | None
    livemode: bool
    kind: Kind
    value: int
    created_at: datetime
    updated_at: datetime


class LimitBody(Body):
    """A limit to set: of a key, of a user, or of the tenant if neither is named."""

    model_config = with_example(kind="images", value=20, user_id=USER_ID)

    kind: Kind
    value: StrictInt = Field(ge=0, le=MAX_VALUE, description="0 refuses every request.")
    livemode: StrictBool = Field(
        default=True, description="false: for test keys. A key's own limit has the key's mode."
    )
    api_key_id: UUID | None = None
    user_id: UUID | None = None


@router.put(
    "",
    summary="Set a limit",
    dependencies=[NoQuery],
    openapi_extra=body_of(LimitBody),
    responses={201: {"model": LimitObject, "description": "Created."}},
)
async def put_limit(
    tenant_id: UUID,
    gateway: GatewayDep,
    actor: ActorDep,
    response: Response,
    body: Annotated[LimitBody, Depends(JsonBody(LimitBody))],
) -> LimitObject:
    """Set a limit. There is one for each owner, mode and kind: setting it again changes its value.
    It applies from the next request on.
    """
    async with changing_tenant(gateway, tenant_id, actor) as session:
        stored = await limit_rows.set_limit(
            session,
            tenant_id,
            kind=body.kind,
            value=body.value,
            livemode=body.livemode,
            api_key_id=body.api_key_id,
            user_id=body.user_id,
        )
    response.status_code = 201 if stored.is_new else 200
    return render_limit(stored)


@router.get("", summary="List the limits of a tenant")
async def list_limits(
    tenant_id: UUID, gateway: GatewayDep, query: Annotated[NumberedPageQuery, InQuery()]
) -> Listed[LimitObject]:
    """List limits, newest first, including those of the tenant's users and keys."""
    async with reading_tenant(gateway, tenant_id) as session:
        page = await limit_rows.list_page(session, tenant_id, limit=query.limit, after=query.after)
    data = [render_limit(stored) for stored in page.items]
    return Listed[LimitObject].of(data, has_more=page.has_more)


@router.delete("/{limit_id}", summary="Remove a limit", status_code=204, dependencies=[NoQuery])
async def remove_limit(
    tenant_id: UUID, limit_id: RowId, gateway: GatewayDep, actor: ActorDep
) -> Response:
    """Remove a limit. For a tenant, the gateway's default applies again."""
    async with changing_tenant(gateway, tenant_id, actor) as session:
        await limit_rows.remove_limit(session, tenant_id, limit_id)
    return Response(status_code=204)


def render_limit(stored: StoredLimit) -> LimitObject:
    """Render the public object."""
    return LimitObject(
        id=str(stored.id),
        owner=stored.owner,
        api_key_id=stored.api_key_id,
        api_key_name=stored.api_key_name,
        user_id=stored.user_id,
        user_name=stored.user_name,
        livemode=stored.livemode,
        kind=stored.kind.value,
        value=stored.value,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
    )
