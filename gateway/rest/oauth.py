"""Which identity provider's tokens are accepted here: RFC 9728's metadata, open to everybody."""

import orjson
from fastapi import APIRouter, Request, Response

from gateway.errors import NotFound
from gateway.rest.dependencies import GatewayDep
from gateway.web.authentication import USUAL_SCOPES, scope_names
from gateway.web.routes import MCP_PATH, METADATA_PATH

router = APIRouter(tags=["oauth"], include_in_schema=False)
# Clients in browsers read it too. Nothing here is anybody's secret.
OPEN_TO_BROWSERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, OPTIONS",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Max-Age": "86400",
}
CACHING = {"Cache-Control": "public, max-age=3600"}


@router.get(METADATA_PATH)
@router.get(METADATA_PATH + MCP_PATH)
async def protected_resource(request: Request, gateway: GatewayDep) -> Response:
    """Of the whole gateway, or of its MCP endpoint; 404 where only API keys are accepted."""
    settings = gateway.settings
    if settings.oidc_issuer is None:
        raise NotFound("This gateway has no identity provider: it accepts API keys only.")
    base = settings.public_url.rstrip("/")
    metadata = {
        "resource": base + request.url.path.removeprefix(METADATA_PATH),
        "authorization_servers": [settings.oidc_issuer],
        "scopes_supported": scope_names(settings, USUAL_SCOPES),
        "bearer_methods_supported": ["header"],
        "resource_name": "Image Gateway",
        "resource_documentation": f"{base}/docs",
    }
    return Response(
        orjson.dumps(metadata), media_type="application/json", headers=OPEN_TO_BROWSERS | CACHING
    )


@router.options(METADATA_PATH)
@router.options(METADATA_PATH + MCP_PATH)
async def preflight() -> Response:
    """A browser asks before it sends a header of its own, such as MCP-Protocol-Version."""
    return Response(status_code=204, headers=OPEN_TO_BROWSERS)
