"""Who sends a request: a bearer key becomes a Caller (or Operator) in the request's state.

Pure ASGI around both fronts, so that no route and no mount can be reached without it; what is
open is named here.
"""

from gateway.bootstrap import Gateway
from gateway.domain import Caller, Operator, Scope
from gateway.errors import Forbidden, GatewayError, Unauthenticated
from gateway.instrumentation import App, Receive, RequestScope, Send, send_error

OPEN_PATHS = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json"})
OPEN_PREFIXES = ("/images/", "/docs-assets/")
OPERATOR_PATHS = frozenset({"/metrics"})
OPERATOR_PREFIXES = ("/admin/",)


class Authentication:
    """The middleware; the opened gateway stands in the application's state."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Pass the request on with its caller, or answer with the refusal."""
        if scope["type"] != "http" or is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            gateway: Gateway = scope["app"].state.gateway
            caller = await gateway.api_keys.authenticate(_bearer(scope))
            state = scope.setdefault("state", {})
            state["caller"] = _check_side(caller, scope["path"])
            # A mounted application has its own `app`; the request's state goes with it.
            state["gateway"] = gateway
        except GatewayError as error:
            await send_error(error, send)
            return
        await self._app(scope, receive, send)


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


def require_scope(caller: Caller, scope: Scope) -> None:
    """Raise `Forbidden` where the key may not do this."""
    if scope not in caller.scopes:
        raise Forbidden(
            f"This API key lacks the scope {scope}; it has: "
            f"{', '.join(sorted(caller.scopes)) or 'none'}."
        )


def _bearer(scope: RequestScope) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").strip().partition(" ")
            if scheme.lower() == "bearer" and token.strip():
                return str(token.strip())
            break
    raise Unauthenticated("No API key was given. Send one as 'Authorization: Bearer igw_…'.")


def _check_side(caller: Caller | Operator, path: str) -> Caller | Operator:
    """Admin keys open the operators' routes and nothing else; tenants' keys the rest."""
    for_operators = path in OPERATOR_PATHS or path.startswith(OPERATOR_PREFIXES)
    if for_operators and not isinstance(caller, Operator):
        raise Forbidden("This route needs an admin key (igw_admin_…).")
    if not for_operators and isinstance(caller, Operator):
        raise Forbidden(
            "An admin key makes no images. Use a tenant's key (igw_live_…, igw_test_…)."
        )
    return caller
