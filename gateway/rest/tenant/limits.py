"""The tenant's limits: read them, and set those of users and keys up to the tenant's own."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi import Query as InQuery
from pydantic import Field, StrictBool

from gateway.config import Settings
from gateway.domain import LimitKind
from gateway.rest.admin.dependencies import (
    JsonBody,
    NoQuery,
    body_of,
)
from gateway.rest.admin.limits import LimitBody, LimitObject, render_limit
from gateway.rest.admin.schemas import Listed, NumberedPageQuery, RowId, left_as_it_is
from gateway.rest.dependencies import ActorDep, GatewayDep, TenantAdmin
from gateway.rest.refusals import refused_with
from gateway.rest.tenant.transactions import changing_own, reading_own
from gateway.tenancy import self_service

router = APIRouter(prefix="/v1/limits", tags=["limits"])


class OwnLimitBody(LimitBody):
    """A limit to set: of a key or of a user."""

    livemode: StrictBool = Field(
        default=True,
        description="false: for test keys. Default: the mode of the key in use. A key's own limit "
        "has the key's mode.",
        json_schema_extra=left_as_it_is,
    )


class LimitsQuery(NumberedPageQuery):
    """Filters of the limit list."""

    livemode: bool | None = Field(None, description="Default: the mode of the key in use.")


@router.put(
    "",
    summary="Set a limit of a user or a key",
    dependencies=[NoQuery],
    openapi_extra=body_of(OwnLimitBody),
    responses=refused_with(404) | {201: {"model": LimitObject, "description": "Created."}},
)
async def put_limit(
    gateway: GatewayDep,
    caller: TenantAdmin,
    actor: ActorDep,
    response: Response,
    body: Annotated[OwnLimitBody, Depends(JsonBody(OwnLimitBody))],
) -> LimitObject:
    """Set a limit, at most the tenant's own, which the operator sets. There is one for each owner,
    mode and kind: setting it again changes its value. It applies from the next request on.
    """
    kind = LimitKind(body.kind)
    async with changing_own(gateway, caller.tenant_id, actor) as session:
        stored = await self_service.set_limit(
            session,
            caller,
            kind=kind,
            value=body.value,
            livemode=body.livemode if "livemode" in body.model_fields_set else None,
            api_key_id=body.api_key_id,
            user_id=body.user_id,
            tenant_default=default_limit(gateway.settings, kind),
        )
    response.status_code = 201 if stored.is_new else 200
    return render_limit(stored)


@router.get("", summary="List the limits of the tenant, its users and keys")
async def list_limits(
    gateway: GatewayDep, caller: TenantAdmin, query: Annotated[LimitsQuery, InQuery()]
) -> Listed[LimitObject]:
    """List limits, newest first. If none is set for the tenant, the gateway's defaults apply."""
    async with reading_own(gateway, caller.tenant_id) as session:
        page = await self_service.list_limits(
            session, caller, livemode=query.livemode, limit=query.limit, after=query.after
        )
    data = [render_limit(stored) for stored in page.items]
    return Listed[LimitObject].of(data, has_more=page.has_more)


@router.delete(
    "/{limit_id}",
    summary="Remove a limit of a user or a key",
    status_code=204,
    dependencies=[NoQuery],
)
async def remove_limit(
    limit_id: RowId, gateway: GatewayDep, caller: TenantAdmin, actor: ActorDep
) -> Response:
    """Remove a limit. The tenant's own limits still apply."""
    async with changing_own(gateway, caller.tenant_id, actor) as session:
        await self_service.remove_limit(session, caller, limit_id)
    return Response(status_code=204)


def default_limit(settings: Settings, kind: LimitKind) -> int | None:
    """Return the gateway's own limit of a tenant for which none is set; None: there is none."""
    return {
        LimitKind.REQUESTS: settings.default_requests_per_minute,
        LimitKind.IMAGES: settings.default_images_per_minute,
        LimitKind.CONCURRENT: settings.default_concurrent_generations,
    }[kind]
