"""All routes of the console."""

from fastapi import APIRouter
from starlette.responses import Response

from gateway.console.dependencies import ViewerDep
from gateway.console.paths import HOME
from gateway.console.sign_in import pages as sign_in
from gateway.console.sign_in.forms import page

router = APIRouter(include_in_schema=False)
router.include_router(sign_in.router)


@router.get(HOME)
async def home(viewer: ViewerDep) -> Response:
    """Show who is signed in."""
    return page("home", viewer=viewer)
