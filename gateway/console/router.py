"""All routes of the console."""

from fastapi import APIRouter

from gateway.console.pages import (
    costs,
    operators,
    overview,
    portal_routes,
    tenant_gallery,
    tenant_playground,
)
from gateway.console.sign_in import keys, oidc, people, portal, sessions
from gateway.console.sign_in import pages as sign_in

router = APIRouter(include_in_schema=False)
for module in (sign_in, keys, oidc, sessions, people, portal):
    router.include_router(module.router)
for screen in (overview, costs, operators, tenant_gallery, tenant_playground, portal_routes):
    router.include_router(screen.router)
