"""Admin keys: list, create, roll and revoke them; a secret is shown once."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.bootstrap import Gateway
from gateway.console.dependencies import FormDep, OperatorChanger, OperatorReader
from gateway.console.forms import (
    GRACES,
    UNTOUCHED,
    FormState,
    grace,
    moment_or_none,
    sent,
    typed,
)
from gateway.console.new_secrets import Shown, flash_of_secret, made_once, shown_once
from gateway.console.pages.operator_shared import operator_page, parts_of_list
from gateway.console.render import Flash
from gateway.domain import AdminScope
from gateway.identity.sent_forms import FormSecret
from gateway.identity.transactions import changing_as_operator, reading_as_operator
from gateway.identity.viewers import Viewer
from gateway.rest.dependencies import GatewayDep
from gateway.tenancy import admin_keys

PATH = "/console/admin-keys"
CACHE = "operator_key"
PAGE_SIZE = 50
SCOPES = {
    AdminScope.ADMIN: "Everything",
    AdminScope.ADMIN_READ: "Every GET under /admin/v1, and /metrics",
    AdminScope.METRICS: "/metrics alone",
}
ORIGINS = {
    "first_start": "first start",
    "setting": "GATEWAY_ADMIN_KEY",
    "command": "command",
    "rest": "REST or console",
}
DONE = {"revoked": Flash("The admin key was revoked. Its next request is refused.")}
USE = (
    "Programs send it as “Authorization: Bearer …” to /admin/v1. The gateway keeps a digest alone."
)

router = APIRouter()


@router.get(PATH)
async def show_admin_keys(
    *,
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    after: UUID | None = None,
    done: str = "",
    secret: UUID | None = None,
) -> Response:
    """List admin keys, newest first, with their last use; once a new secret."""
    shown = await shown_once(gateway, viewer, secret, use=USE)
    flash = flash_of_secret(secret, shown) or DONE.get(done)
    return await _page(request, gateway, viewer, after=after, flash=flash, shown=shown)


@router.post(PATH)
async def create_admin_key(
    request: Request, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Create an admin key; the page after it shows its secret once."""
    make = partial(_create, request, gateway, viewer, form)
    return await sent("create", form, make, partial(_page, request, gateway, viewer))


@router.post(PATH + "/{key_id}/roll")
async def roll_admin_key(
    key_id: UUID, request: Request, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Issue the successor of an admin key; the page after it shows its secret once."""

    async def change() -> str:
        valid = grace(form)
        async with changing_as_operator(gateway, viewer, clears=CACHE) as session:

            async def make() -> FormSecret:
                twin = await admin_keys.roll(
                    session, key_id, pepper=gateway.core.pepper, origin="rest", grace=valid
                )
                return FormSecret(PATH, twin.name, twin.secret)

            return await made_once(request, session, form, make)

    return await sent("keys", form, change, partial(_page, request, gateway, viewer))


@router.post(PATH + "/{key_id}/revoke")
async def revoke_admin_key(
    key_id: UUID, request: Request, viewer: OperatorChanger, gateway: GatewayDep
) -> Response:
    """Revoke an admin key; the last one that can do everything stays."""

    async def change() -> str:
        async with changing_as_operator(gateway, viewer, clears=CACHE) as session:
            await admin_keys.revoke(session, key_id, keeps_one=True)
        return f"{PATH}?done=revoked"

    return await sent("keys", {}, change, partial(_page, request, gateway, viewer))


async def _create(
    request: Request, gateway: Gateway, viewer: Viewer, form: Mapping[str, str]
) -> str:
    """Create a key; return the address of the page that shows its secret."""
    expires_at = moment_or_none(form, "expires_at", viewer.time_zone)
    async with changing_as_operator(gateway, viewer, clears=CACHE) as session:

        async def make() -> FormSecret:
            issued = await admin_keys.create(
                session,
                typed(form, "name"),
                pepper=gateway.core.pepper,
                origin="rest",
                scopes=[scope.value for scope in AdminScope if form.get(f"scope-{scope}")],
                expires_at=expires_at,
            )
            return FormSecret(PATH, issued.name, issued.secret)

        return await made_once(request, session, form, make)


async def _page(
    request: Request,
    gateway: Gateway,
    viewer: Viewer,
    *,
    after: UUID | None = None,
    flash: Flash | None = None,
    state: FormState = UNTOUCHED,
    shown: Shown | None = None,
) -> Response:
    async with reading_as_operator(gateway, viewer) as session:
        found = await admin_keys.list_page(session, limit=PAGE_SIZE, after=after)
    return operator_page(
        viewer,
        request,
        "admin_keys.html",
        title="Admin keys",
        lead="Keys of operators' programs, and the way into the console in an emergency.",
        flash=flash,
        state=state,
        shown=shown,
        **parts_of_list(found, PATH, after),
        origins=ORIGINS,
        scopes=list(SCOPES.items()),
        graces=GRACES,
        now=datetime.now(UTC),
    )
