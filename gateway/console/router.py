"""All routes of the console."""

from fastapi import APIRouter

from gateway.console.pages import costs, operators, overview
from gateway.console.sign_in import keys, oidc, people, portal, sessions
from gateway.console.sign_in import pages as sign_in

router = APIRouter(include_in_schema=False)
for module in (sign_in, keys, oidc, sessions, people, portal, overview, costs, operators):
    router.include_router(module.router)
