"""People and invitations: operators see all, a tenant's administrators those of their tenant."""

from functools import partial
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.bootstrap import Gateway
from gateway.console.dependencies import FormDep, ViewerDep, redirect
from gateway.console.forms import UNTOUCHED, FormState, sent, typed
from gateway.console.new_secrets import Shown, flash_of_secret, made_once, shown_once
from gateway.console.paths import INVITATIONS, PEOPLE
from gateway.console.render import Flash, page
from gateway.console.shell import shell_of
from gateway.console.sign_in.provider import provider_of
from gateway.db.engine import OperatorSession
from gateway.errors import InvalidRequest
from gateway.identity import invitations, people
from gateway.identity.people import changing_people, may_change, reading_people, roles_to_give
from gateway.identity.sent_forms import FormSecret
from gateway.identity.viewers import Role, Viewer
from gateway.rest.dependencies import GatewayDep
from gateway.tenancy import tenants

router = APIRouter()
PAGE_SIZE = 50
DONE = {
    "role": Flash("The role was changed. The person's sessions have ended."),
    "disabled": Flash("The person is disabled. Their sessions have ended."),
    "active": Flash("The person may sign in again."),
    "revoked": Flash("The invitation was revoked."),
}


@router.get(PEOPLE)
async def show(
    *,
    request: Request,
    viewer: ViewerDep,
    gateway: GatewayDep,
    after: UUID | None = None,
    done: str = "",
    secret: UUID | None = None,
) -> Response:
    """List people and open invitations, with a form to invite; once a new invitation's address."""
    shown = await shown_once(gateway, viewer, secret)
    flash = flash_of_secret(secret, shown) or DONE.get(done)
    return await _page(request, gateway, viewer, after=after, flash=flash, shown=shown)


@router.post(INVITATIONS)
async def invite(
    request: Request, viewer: ViewerDep, gateway: GatewayDep, form: FormDep
) -> Response:
    """Invite a person; the page after it shows the invitation's address once."""

    async def change() -> str:
        async with changing_people(gateway, viewer) as session:

            async def make() -> FormSecret:
                tenant_id, name = viewer.tenant_id, typed(form, "tenant")
                if tenant_id is None and name:
                    tenant_id = (await tenants.find(OperatorSession(session), name)).id
                email = typed(form, "email")
                link = await invitations.invite(
                    session,
                    viewer,
                    email=email,
                    role_name=typed(form, "role"),
                    tenant_id=tenant_id,
                    settings=gateway.settings,
                )
                return FormSecret(PEOPLE, email, link)

            return await made_once(request, session, form, make)

    return await sent("invite", form, change, partial(_page, request, gateway, viewer))


@router.post(INVITATIONS + "/{invitation_id}/revoke")
async def revoke(invitation_id: UUID, viewer: ViewerDep, gateway: GatewayDep) -> Response:
    """Revoke an invitation."""
    async with changing_people(gateway, viewer) as session:
        await invitations.revoke(session, viewer, invitation_id)
    return redirect(f"{PEOPLE}?done=revoked")


@router.post(PEOPLE + "/{person_id}/role")
async def change_role(
    person_id: UUID, viewer: ViewerDep, gateway: GatewayDep, form: FormDep
) -> Response:
    """Give a person another role."""
    async with changing_people(gateway, viewer) as session:
        await people.change_role(session, viewer, person_id, form.get("role", ""))
    return redirect(f"{PEOPLE}?done=role")


@router.post(PEOPLE + "/{person_id}/status")
async def set_status(
    person_id: UUID, viewer: ViewerDep, gateway: GatewayDep, form: FormDep
) -> Response:
    """Disable or enable a person."""
    status = form.get("status", "")
    if status not in {"active", "disabled"}:
        raise InvalidRequest("status must be active or disabled.", param="status")
    async with changing_people(gateway, viewer) as session:
        await people.set_status(
            session, viewer, person_id, "active" if status == "active" else "disabled"
        )
    return redirect(f"{PEOPLE}?done={status}")


async def _page(
    request: Request,
    gateway: Gateway,
    viewer: Viewer,
    *,
    after: UUID | None = None,
    flash: Flash | None = None,
    shown: Shown | None = None,
    state: FormState = UNTOUCHED,
) -> Response:
    async with reading_people(gateway, viewer) as session:
        found = await people.list_page(session, viewer, limit=PAGE_SIZE, after=after)
        invited = await invitations.list_open(session, viewer)
        owners = {one.tenant_id for one in found.items} | {one.tenant_id for one in invited}
        names = await tenants.names_of(session, owners)
    roles = roles_to_give(viewer)
    return page(
        shell_of(viewer, request, flash=flash),
        "sign_in/people.html",
        title="People",
        lead="Who may sign in through the identity provider, and as what.",
        status=state.status,
        state=state,
        people=found.items,
        invitations=invited,
        tenant_names=names,
        in_tenant=viewer.tenant_id is not None,
        own_person_id=viewer.person_id,
        may_change=may_change(viewer),
        roles=roles,
        role_options=[(role.value, role.value) for role in roles],
        operator_roles={role for role in Role if role.is_operator},
        has_provider=provider_of(request, gateway.settings) is not None,
        shown=shown,
        older=f"{PEOPLE}?after={found.items[-1].id}" if found.has_more else "",
    )
