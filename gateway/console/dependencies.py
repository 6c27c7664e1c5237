"""Dependencies of the pages: the viewer, alone or with a permission, and a bounded form.

    @router.get("/console/tenants")
    async def tenants(viewer: OperatorReader, gateway: GatewayDep) -> Response: ...

Without a session, `ViewerDep` leads the browser to the sign-in and back.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated
from urllib.parse import parse_qsl, quote

from fastapi import Depends, FastAPI, Request
from starlette.responses import RedirectResponse, Response

from gateway.bootstrap import Gateway
from gateway.console.cookies import drop_cookie, read_cookie
from gateway.console.guard import NUL_REFUSED, SAFE_METHODS
from gateway.console.paths import HOME, LEAVE_PORTAL, LOGIN, SIGN_OUT, own_path
from gateway.console.render import MARK
from gateway.errors import Conflict, InvalidRequest
from gateway.identity import sessions
from gateway.identity.sessions import Browser, SessionEnded
from gateway.identity.viewers import Permission, Viewer
from gateway.request_record import current
from gateway.rest.dependencies import GatewayDep
from gateway.tenancy.refused_keys import source_of
from gateway.web.bodies import read_body, refuse_compressed

MAX_FORM_BYTES = 65_536
MAX_FORM_FIELDS = 200
MAX_SHOWN_NAME = 64
EVENT_STREAM = "text/event-stream"
SWITCHES = re.compile(rf"{SIGN_OUT}|{LEAVE_PORTAL}|/console/tenants/[^/]+/portal")
"""The forms that only change what is open: they work from any tab."""
FORM_TYPE = "application/x-www-form-urlencoded"


class StaleForm(Conflict):
    """A form of a page that was made for another person, or for another tenant's portal."""

    code = "another_sign_in"


async def get_viewer(request: Request, gateway: GatewayDep) -> Viewer:
    """Return the viewer of the request's session, and note them in the request's record.

    Raises:
        SessionEnded: there is no session, or it has ended; the browser is led to the sign-in.
        StaleForm: a form of a page that was made for another person or tenant.
    """
    viewer = await sessions.find(
        gateway.database,
        read_cookie(request, gateway.settings),
        # An open page renews its stream by itself, whether anyone looks at it or not.
        touches=EVENT_STREAM not in request.headers.get("accept", ""),
    )
    request.state.viewer = viewer
    record = current()
    record.session_id = viewer.session_id
    _refuse_stale_form(request, viewer)
    record.tenant_id, record.user_id = viewer.tenant_id, viewer.user_id
    record.operator_key_id = viewer.operator_key_id
    if viewer.key is not None:
        record.api_key_id, record.livemode = viewer.key.root_id, viewer.key.livemode
    return viewer


def _refuse_stale_form(request: Request, viewer: Viewer) -> None:
    """Refuse a form whose page was made for another person, or for another tenant's portal.

    Another tab may have opened another portal since, or signed in as someone else.

    Raises:
        StaleForm: it was.
    """
    if request.method in SAFE_METHODS or SWITCHES.fullmatch(request.url.path):
        return
    if request.query_params.get(MARK, viewer.mark) != viewer.mark:
        place = "the operator's console"
        if viewer.tenant_id is not None:
            place = f"the portal of {viewer.tenant_name}"
        raise StaleForm(
            "This form belongs to another tenant or to another sign-in. Open now, perhaps by "
            f"another tab: {place}, as {viewer.name}. Nothing was changed."
        )


class Needs:
    """A dependency that returns the viewer if they have a permission."""

    def __init__(self, permission: Permission) -> None:
        self._permission = permission

    async def __call__(self, viewer: Annotated[Viewer, Depends(get_viewer)]) -> Viewer:
        viewer.require(self._permission)
        return viewer


ViewerDep = Annotated[Viewer, Depends(get_viewer)]
OperatorReader = Annotated[Viewer, Depends(Needs(Permission.OPERATOR_READ))]
OperatorChanger = Annotated[Viewer, Depends(Needs(Permission.OPERATOR_CHANGE))]


async def read_form(request: Request, gateway: GatewayDep) -> Mapping[str, str]:
    """Return the fields of a posted form; of a repeated one, the last value.

    Raises:
        InvalidRequest: another content type, too many fields, or a NUL in one.
        PayloadTooLarge: more than `MAX_FORM_BYTES`.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM_TYPE:
        raise InvalidRequest(f"A form must be sent as {FORM_TYPE}.")
    refuse_compressed(request.scope)
    content = await read_body(
        request.scope,
        request.receive,
        max_bytes=MAX_FORM_BYTES,
        seconds=gateway.settings.upload_seconds,
    )
    try:
        fields = parse_qsl(
            content.decode(),
            keep_blank_values=True,
            max_num_fields=MAX_FORM_FIELDS,
            errors="strict",
        )
    except ValueError:
        raise InvalidRequest(
            f"The form cannot be read: it must be UTF-8 with at most {MAX_FORM_FIELDS} fields."
        ) from None
    return without_nul(dict(fields))


def without_nul(fields: Mapping[str, str]) -> Mapping[str, str]:
    """Return the fields of a form, none of which contains the character NUL.

    Raises:
        InvalidRequest: one does. Postgres refuses it in texts.
    """
    for name, text in fields.items():
        if "\0" in name or "\0" in text:
            shown = name.replace("\0", "")[:MAX_SHOWN_NAME]
            raise InvalidRequest(f"The field {shown!r} {NUL_REFUSED}", param=shown)
    return fields


FormDep = Annotated[Mapping[str, str], Depends(read_form)]


def browser_of(request: Request) -> Browser:
    """The browser of a request, as the list of sessions shows it."""
    address = request.client.host if request.client else ""
    return Browser(source_of(address), request.headers.get("user-agent", ""))


def redirect(path: str) -> RedirectResponse:
    """Lead the browser to one of the console's pages, by GET."""
    return RedirectResponse(path, status_code=HTTPStatus.SEE_OTHER)


def install_sign_in_redirect(app: FastAPI) -> None:
    """Lead browsers without a session to the sign-in."""
    app.add_exception_handler(SessionEnded, _to_sign_in)


async def _to_sign_in(request: Request, error: Exception) -> Response:
    if not isinstance(error, SessionEnded):
        raise error
    gateway: Gateway = request.app.state.gateway
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    # A form cannot be sent again after the sign-in.
    target = own_path(here) if request.method in SAFE_METHODS else HOME
    address = f"{LOGIN}?next={quote(target, safe='/')}"
    if error.end_reason:
        address += f"&ended={quote(error.end_reason)}"
    response: Response
    if "hx-request" in request.headers:
        # A redirect would be followed, and the sign-in put into a part of the page.
        response = Response(status_code=HTTPStatus.UNAUTHORIZED, headers={"HX-Redirect": address})
    else:
        response = redirect(address)
    if read_cookie(request, gateway.settings):
        drop_cookie(response, gateway.settings)
    return response
