"""Sessions: a person's own, and for administrators those of others."""

from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.console.cookies import drop_cookie
from gateway.console.dependencies import ViewerDep, redirect
from gateway.console.paths import ALL_SESSIONS, SESSIONS
from gateway.console.render import Flash, page
from gateway.console.shell import shell_of
from gateway.identity import sessions
from gateway.identity.people import changing_people, may_change, reading_people
from gateway.request_record import current
from gateway.rest.dependencies import GatewayDep

router = APIRouter()
PAGE_SIZE = 50
DONE = {
    "ended": Flash("The session was ended."),
    "others": Flash("All your other sessions were ended."),
}


@router.get(SESSIONS)
async def show_own(
    request: Request, viewer: ViewerDep, gateway: GatewayDep, done: str = ""
) -> Response:
    """List the person's own sessions."""
    async with gateway.operators_database.operator() as session:
        found = await sessions.list_own(session, viewer)
    return page(
        shell_of(viewer, request, flash=DONE.get(done)),
        "sign_in/sessions.html",
        title="Your sessions",
        lead="Each browser in which you are signed in.",
        sessions=found,
        own_id=viewer.session_id,
        end_path=SESSIONS,
        is_own=True,
        may_end=True,
        older="",
    )


@router.post(SESSIONS + "/end-others")
async def end_others(viewer: ViewerDep, gateway: GatewayDep) -> Response:
    """End all sessions of the person but this one."""
    actor = viewer.actor(current().request_id)
    async with gateway.operators_database.operator(by=actor) as session:
        await sessions.end_others_of(session, viewer)
    return redirect(f"{SESSIONS}?done=others")


@router.post(SESSIONS + "/{session_id}/end")
async def end_own(session_id: UUID, viewer: ViewerDep, gateway: GatewayDep) -> Response:
    """End one of the person's own sessions."""
    actor = viewer.actor(current().request_id)
    async with gateway.operators_database.operator(by=actor) as session:
        await sessions.end_own(session, viewer, session_id)
    if session_id != viewer.session_id:
        return redirect(f"{SESSIONS}?done=ended")
    response = redirect(SESSIONS)
    drop_cookie(response, gateway.settings)
    return response


@router.get(ALL_SESSIONS)
async def show_all(
    request: Request,
    viewer: ViewerDep,
    gateway: GatewayDep,
    after: UUID | None = None,
    done: str = "",
) -> Response:
    """List the sessions that the viewer may end: all, or those of the tenant."""
    async with reading_people(gateway, viewer) as session:
        found = await sessions.list_page(session, limit=PAGE_SIZE, after=after)
    return page(
        shell_of(viewer, request, flash=DONE.get(done)),
        "sign_in/sessions.html",
        title="Sessions",
        lead="Everyone who is signed in now.",
        sessions=found.items,
        own_id=viewer.session_id,
        end_path=ALL_SESSIONS,
        is_own=False,
        may_end=may_change(viewer),
        older=f"{ALL_SESSIONS}?after={found.items[-1].id}" if found.has_more else "",
    )


@router.post(ALL_SESSIONS + "/{session_id}/end")
async def end_one(session_id: UUID, viewer: ViewerDep, gateway: GatewayDep) -> Response:
    """End a session of anyone whom the viewer administers."""
    async with changing_people(gateway, viewer) as session:
        await sessions.end_one(session, session_id)
    return redirect(f"{ALL_SESSIONS}?done=ended")
