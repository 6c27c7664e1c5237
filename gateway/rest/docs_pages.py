"""The pages of the API's reference: one for tenants, one for operators. Their files are local."""

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

ASSETS = "/docs-assets"

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def show_for_tenants(request: Request) -> HTMLResponse:
    """Show the routes of tenants."""
    return _page(request, "tenant", "API")


@router.get("/docs/operators")
async def show_for_operators(request: Request) -> HTMLResponse:
    """Show the routes of operators."""
    return _page(request, "operator", "API of operators")


def _page(request: Request, audience: str, title: str) -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url=f"/openapi.json?audience={audience}",
        title=f"Image Gateway: {title}",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
        swagger_ui_parameters=request.app.swagger_ui_parameters,
    )
