"""API keys of a tenant, as operators see and change them: create, roll, revoke."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.bootstrap import Gateway
from gateway.console.dependencies import FormDep, OperatorChanger, OperatorReader, redirect
from gateway.console.forms import (
    GRACES,
    UNTOUCHED,
    FormState,
    grace,
    moment_or_none,
    one_of,
    sent,
    typed,
)
from gateway.console.new_secrets import Shown, flash_of_secret, made_once, shown_once
from gateway.console.pages.operator_shared import (
    changing,
    parts_of_list,
    reading,
    tenant_page,
    tenant_path,
)
from gateway.console.pages.tenant_keys import SCOPES
from gateway.console.render import Flash
from gateway.domain import USUAL_KEY_SCOPES, Scope
from gateway.errors import InvalidRequest
from gateway.identity.sent_forms import FormSecret
from gateway.identity.viewers import Viewer
from gateway.rest.admin.keys import KeyBody, check_key
from gateway.rest.dependencies import GatewayDep
from gateway.tenancy import api_keys, key_use, lookups, tenants, users
from gateway.tenancy.api_keys import IssuedKey

TAB = "/keys"
PATH = "/console/tenants/{tenant_id}/keys"
PAGE_SIZE = 50
DONE = {"revoked": Flash("The key was revoked. Its next request is refused.")}
USE = "Applications send it as “Authorization: Bearer …”. The gateway keeps a digest alone."

router = APIRouter()


@router.get(PATH)
async def show_keys(
    *,
    tenant_id: UUID,
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    after: UUID | None = None,
    done: str = "",
    secret: UUID | None = None,
) -> Response:
    """List the keys of a tenant, newest first, with their last use; once a new secret."""
    shown = await shown_once(gateway, viewer, secret, use=USE)
    flash = flash_of_secret(secret, shown) or DONE.get(done)
    return await _page(request, gateway, viewer, tenant_id, after=after, flash=flash, shown=shown)


@router.post(PATH)
async def create_key(
    tenant_id: UUID, request: Request, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Create a key; the page after it shows its secret once."""
    issue = partial(_issue, request, gateway, viewer, tenant_id, form)
    return await sent("create", form, issue, partial(_page, request, gateway, viewer, tenant_id))


@router.post(PATH + "/{key_id}/roll")
async def roll_key(
    *,
    tenant_id: UUID,
    key_id: UUID,
    request: Request,
    viewer: OperatorChanger,
    gateway: GatewayDep,
    form: FormDep,
) -> Response:
    """Issue the successor of a key; the page after it shows its secret once."""

    async def change() -> str:
        valid = grace(form)
        async with changing(gateway, viewer, tenant_id) as session:

            async def make() -> FormSecret:
                twin = await api_keys.roll(session, key_id, pepper=gateway.core.pepper, grace=valid)
                return _new_secret(tenant_id, twin)

            return await made_once(request, session, form, make)

    return await sent("roll", form, change, partial(_page, request, gateway, viewer, tenant_id))


@router.post(PATH + "/{key_id}/revoke")
async def revoke_key(
    tenant_id: UUID, key_id: UUID, viewer: OperatorChanger, gateway: GatewayDep
) -> Response:
    """Revoke a key, from its next request on."""
    async with changing(gateway, viewer, tenant_id) as session:
        await api_keys.revoke(session, key_id)
    return redirect(f"{tenant_path(tenant_id, TAB)}?done=revoked")


def _new_secret(tenant_id: UUID, issued: IssuedKey) -> FormSecret:
    return FormSecret(tenant_path(tenant_id, TAB), issued.name or "the new key", issued.secret)


async def _issue(
    request: Request, gateway: Gateway, viewer: Viewer, tenant_id: UUID, form: Mapping[str, str]
) -> str:
    """Issue a key; return the address of the page that shows its secret."""
    models = [one for one in typed(form, "models").replace(",", " ").split() if one]
    expires_at = moment_or_none(form, "expires_at", viewer.time_zone)
    check_key(gateway, KeyBody.model_construct(models=models or None, expires_at=expires_at))
    livemode = one_of(form, "mode", ("live", "test")) == "live"
    scopes = [scope.value for scope in Scope if form.get(f"scope-{scope}")]
    if not scopes:
        raise InvalidRequest("Choose at least one scope.", param="scopes")
    async with changing(gateway, viewer, tenant_id) as session:

        async def make() -> FormSecret:
            user = typed(form, "user")
            found = await lookups.find_user(session, tenant_id, user) if user else None
            issued = await api_keys.issue(
                session,
                tenant_id,
                pepper=gateway.core.pepper,
                livemode=livemode,
                name=typed(form, "name") or None,
                user_id=None if found is None else found.id,
                scopes=scopes,
                models=models or None,
                expires_at=expires_at,
            )
            return _new_secret(tenant_id, issued)

        return await made_once(request, session, form, make)


async def _page(
    request: Request,
    gateway: Gateway,
    viewer: Viewer,
    tenant_id: UUID,
    *,
    after: UUID | None = None,
    flash: Flash | None = None,
    state: FormState = UNTOUCHED,
    shown: Shown | None = None,
) -> Response:
    async with reading(gateway, viewer, tenant_id) as session:
        tenant = await tenants.get(session, tenant_id)
        found = await api_keys.list_page(session, tenant_id, limit=PAGE_SIZE, after=after)
        used = await key_use.last_uses(session, tenant_id, {one.root_id for one in found.items})
        names = await users.names_of(session, tenant_id, (one.user_id for one in found.items))
    here = tenant_path(tenant_id, TAB)
    return tenant_page(
        viewer,
        request,
        "tenant_keys.html",
        tenant,
        TAB,
        flash=flash,
        state=state,
        shown=shown,
        **parts_of_list(found, here, after),
        used=used,
        names=names,
        scopes=[(scope, SCOPES[scope], scope in USUAL_KEY_SCOPES) for scope in Scope],
        graces=GRACES,
        now=datetime.now(UTC),
    )
