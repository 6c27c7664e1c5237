"""OAuth 2.0 protected resource metadata (RFC 9728), readable without a key."""

import orjson
from fastapi import APIRouter, Request, Response

from gateway.errors import NotFound
from gateway.rest.dependencies import GatewayDep
from gateway.web.authentication import USUAL_SCOPES, scope_names
from gateway.web.routes import MCP_PATH, METADATA_PATH

router = APIRouter(tags=["oauth"], include_in_schema=False)
# Clients in browsers read it too. It contains no secrets.
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
    """Return the metadata of the gateway or its MCP endpoint; 404 if only API keys are accepted."""
    settings = gateway.settings
    if settings.oidc_issuer is None:
        raise NotFound("This gateway has no identity provider; it accepts API keys only.")
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
    """Answer a browser's CORS preflight, sent for headers such as MCP-Protocol-Version."""
    return Response(status_code=204, headers=OPEN_TO_BROWSERS)
