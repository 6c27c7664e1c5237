"""Limits of a tenant, its users and keys: show, set, remove."""

from functools import partial
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.bootstrap import Gateway
from gateway.console.dependencies import FormDep, OperatorChanger, OperatorReader, redirect
from gateway.console.forms import UNTOUCHED, FormState, one_of, sent, whole
from gateway.console.pages.operator_owners import OWNERS, owner_ids, row_id_of
from gateway.console.pages.operator_shared import (
    changing,
    parts_of_list,
    reading,
    tenant_page,
    tenant_path,
)
from gateway.console.render import Flash
from gateway.identity.viewers import Viewer
from gateway.rest.dependencies import GatewayDep
from gateway.tenancy import limit_rows, tenants

ROOT = "/console/tenants/{tenant_id}"
LIMITS = "/limits"
PAGE_SIZE = 50
KINDS = (
    ("requests", "Requests per minute"),
    ("images", "Images per minute"),
    ("concurrent", "Generations at once"),
)
DONE = {
    "limit-set": Flash("The limit is set. It applies from the next request on."),
    "limit-removed": Flash("The limit was removed."),
}

router = APIRouter()


@router.get(ROOT + LIMITS)
async def show_limits(
    *,
    tenant_id: UUID,
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    after: int | None = None,
    done: str = "",
) -> Response:
    """Show the limits of a tenant, its users and keys."""
    return await _page(request, gateway, viewer, tenant_id, after=after, flash=DONE.get(done))


@router.post(ROOT + LIMITS)
async def set_limit(
    tenant_id: UUID, request: Request, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Set a limit of the tenant, of a user or of a key."""

    async def change() -> str:
        async with changing(gateway, viewer, tenant_id) as session:
            livemode = one_of(form, "mode", ("live", "test")) == "live"
            key_id, user_id = await owner_ids(session, tenant_id, form, livemode=livemode)
            await limit_rows.set_limit(
                session,
                tenant_id,
                kind=one_of(form, "kind", [value for value, _ in KINDS]),
                value=whole(form, "value", at_most=limit_rows.MAX_VALUE),
                livemode=livemode,
                api_key_id=key_id,
                user_id=user_id,
            )
        return f"{tenant_path(tenant_id, LIMITS)}?done=limit-set"

    return await sent("set", form, change, partial(_page, request, gateway, viewer, tenant_id))


@router.post(ROOT + LIMITS + "/{limit_id}/remove")
async def remove_limit(
    tenant_id: UUID, limit_id: int, viewer: OperatorChanger, gateway: GatewayDep
) -> Response:
    """Remove a limit."""
    async with changing(gateway, viewer, tenant_id) as session:
        await limit_rows.remove_limit(session, tenant_id, row_id_of(limit_id))
    return redirect(f"{tenant_path(tenant_id, LIMITS)}?done=limit-removed")


async def _page(
    request: Request,
    gateway: Gateway,
    viewer: Viewer,
    tenant_id: UUID,
    *,
    after: int | None = None,
    flash: Flash | None = None,
    state: FormState = UNTOUCHED,
) -> Response:
    async with reading(gateway, viewer, tenant_id) as session:
        tenant = await tenants.get(session, tenant_id)
        found = await limit_rows.list_page(
            session,
            tenant_id,
            limit=PAGE_SIZE,
            after=None if after is None else row_id_of(after),
        )
    here = tenant_path(tenant_id, LIMITS)
    return tenant_page(
        viewer,
        request,
        "tenant_limits.html",
        tenant,
        LIMITS,
        flash=flash,
        state=state,
        **parts_of_list(found, here, after),
        owners=OWNERS,
        kinds=KINDS,
        kind_names=dict(KINDS),
    )
