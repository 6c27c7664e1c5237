"""Operators in a tenant's portal: open it, and leave it again. Both are audited."""

from uuid import UUID

from fastapi import APIRouter
from starlette.responses import Response

from gateway.bootstrap import Gateway
from gateway.console.cookies import set_cookie
from gateway.console.dependencies import ViewerDep, redirect
from gateway.console.paths import HOME, LEAVE_PORTAL
from gateway.identity import sessions
from gateway.identity.transactions import changing_as_operator
from gateway.identity.viewers import Permission, Viewer
from gateway.rest.dependencies import GatewayDep

router = APIRouter()


@router.post("/console/tenants/{tenant_id}/portal")
async def open_portal(tenant_id: UUID, viewer: ViewerDep, gateway: GatewayDep) -> Response:
    """Open the portal of a tenant, as its administrators see it."""
    return await _visit(gateway, viewer, tenant_id)


@router.post(LEAVE_PORTAL)
async def leave_portal(viewer: ViewerDep, gateway: GatewayDep) -> Response:
    """Leave the portal."""
    return await _visit(gateway, viewer, None)


async def _visit(gateway: Gateway, viewer: Viewer, tenant_id: UUID | None) -> Response:
    async with changing_as_operator(gateway, viewer, Permission.PORTAL_VISIT) as session:
        token = await sessions.visit(session, viewer, tenant_id)
    response = redirect(HOME)
    set_cookie(response, gateway.settings, token)
    return response
