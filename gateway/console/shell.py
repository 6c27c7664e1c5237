"""The frame of a page for its viewer."""

from fastapi import Request

from gateway.console.paths import LEAVE_PORTAL, SESSIONS, SIGN_OUT
from gateway.console.render import Flash, Shell
from gateway.identity.viewers import Viewer


def shell_of(
    viewer: Viewer, request: Request, *, livemode: bool | None = None, flash: Flash | None = None
) -> Shell:
    """Build the frame: the operator's side, or a tenant's portal in one mode.

    `livemode`: the mode that the page shows; None where it shows both, or neither.
    """
    is_portal = viewer.tenant_id is not None
    return Shell(
        path=request.url.path,
        name=viewer.name,
        role=viewer.role,
        side="tenant" if is_portal else "operator",
        zone=viewer.time_zone,
        tenant_name=viewer.tenant_name,
        livemode=livemode,
        is_break_glass=viewer.is_break_glass,
        leave_path=LEAVE_PORTAL if viewer.is_visiting else None,
        sign_out_path=SIGN_OUT,
        sessions_path=SESSIONS,
        flashes=() if flash is None else (flash,),
        permissions=viewer.permissions,
        has_key=viewer.key is not None,
        modes=viewer.modes,
        mark=viewer.mark,
    )
