"""All routes of the console."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.console.dependencies import ViewerDep
from gateway.console.paths import HOME
from gateway.console.render import page
from gateway.console.shell import shell_of
from gateway.console.sign_in import pages as sign_in

router = APIRouter(include_in_schema=False)
router.include_router(sign_in.router)


@router.get(HOME)
async def home(viewer: ViewerDep, request: Request) -> Response:
    """Show who is signed in."""
    return page(shell_of(viewer, request), "sign_in/home.html", title="Image Gateway")
