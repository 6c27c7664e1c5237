"""Authentication: a bearer key or token becomes a Caller (or Operator) in the request's state.

Pure ASGI around both fronts, so that every route and mount requires it; `web.routes` lists the open
paths. With an identity provider, refusals carry the challenges of RFC 6750 and RFC 9728.
"""

import re
from collections.abc import Collection, Mapping, Sequence

from gateway.bootstrap import Gateway
from gateway.config import Settings
from gateway.domain import AdminScope, Caller, Operator, Scope
from gateway.errors import (
    Forbidden,
    GatewayError,
    InsufficientScope,
    KeyMissing,
    MalformedAuthorization,
    Unauthenticated,
)
from gateway.request_record import current
from gateway.web.instrumentation import App, Receive, RequestScope, Send, send_error
from gateway.web.routes import MCP_PATH, METADATA_PATH, METRICS_PATH, Access, WebRoute, find_route

READING_METHODS = frozenset({"GET", "HEAD"})
KEY_PREFIX = "igw_"
API_KEY_HEADER = b"api-key"
USUAL_SCOPES = (Scope.IMAGES_READ, Scope.IMAGES_WRITE, Scope.USAGE_READ)
"""The scopes that a client requests at first; any of them opens the MCP endpoint. Storing
provider keys needs a further scope, which a client requests when it is refused."""
# RFC 6750, section 2.1; and the characters allowed in quotes in a challenge, section 3.
_TOKEN = re.compile(r"[\w.~+/-]+=*", re.ASCII)
_NOT_QUOTABLE = re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]+")


class Authentication:
    """The authentication middleware; the opened gateway is in the application's state.

    `tool_scopes`: the scope that each MCP tool needs, by the tool's name.
    """

    def __init__(self, app: App, *, tool_scopes: Mapping[str, Scope]) -> None:
        self._app = app
        self._tool_scopes = tool_scopes

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Pass the request on with its caller, or answer with the refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = find_route(scope["path"])
        if route.access in {Access.OPEN, Access.SESSION}:
            await self._app(scope, receive, send)
            return
        gateway: Gateway = scope["app"].state.gateway
        record = current()
        if not route.is_quiet:
            record.sink = gateway.request_log.put
        try:
            caller = await _identify(gateway, scope)
            record.identify(caller)
            _check_side(caller, route)
            if isinstance(caller, Operator):
                check_operator(caller, scope["method"], scope["path"])
            if isinstance(caller, Caller) and route.is_mcp:
                self._check_mcp(caller, scope)
        except GatewayError as error:
            await send_error(error, send, challenge_headers(error, gateway.settings, scope["path"]))
            return
        # A mounted application replaces `app` in the scope; the request's state stays.
        scope.setdefault("state", {}).update(caller=caller, gateway=gateway)
        await self._app(scope, receive, send)

    def _check_mcp(self, caller: Caller, scope: RequestScope) -> None:
        """Refuse callers without any MCP scope, and tokens without the scope of the called tool.

        A client with a token can request more scopes if status and header tell it to. It names the
        tool in a header since protocol version 2026-07-28; before that, and with an API key, the
        tool's own refusal says it.
        """
        if caller.scopes.isdisjoint(USUAL_SCOPES):
            raise _insufficient(caller, *USUAL_SCOPES)
        if caller.api_key_id is None and _header(scope, b"mcp-method") == "tools/call":
            needed = self._tool_scopes.get(_header(scope, b"mcp-name"))
            if needed is not None:
                require_scope(caller, needed)


def check_operator(operator: Operator, method: str, path: str) -> None:
    """Raise `Forbidden` if the scopes of an admin key do not cover this request.

    Every scope may read the metrics; `admin:read` may read everything; `admin` may also change it.
    """
    if AdminScope.ADMIN in operator.scopes or path == METRICS_PATH:
        return
    needed = AdminScope.ADMIN_READ if method in READING_METHODS else AdminScope.ADMIN
    if needed not in operator.scopes:
        raise Forbidden(
            f"This admin key lacks the scope {needed}; it has: "
            f"{', '.join(sorted(operator.scopes))}."
        )


def require_scope(caller: Caller, scope: Scope) -> None:
    """Raise `InsufficientScope` if the key or token lacks this scope."""
    if scope not in caller.scopes:
        raise _insufficient(caller, scope)


def challenge_headers(error: GatewayError, settings: Settings, path: str) -> dict[str, str]:
    """Build the header that tells a client where to get a sufficient token, and with which scopes.

    Empty without an identity provider. RFC 6750, section 3; RFC 9728, section 5.1; MCP 2026-07-28,
    authorization.
    """
    if settings.oidc_issuer is None:
        return {}
    scopes: tuple[str, ...] = USUAL_SCOPES
    fields = {"realm": "image-gateway"}
    if isinstance(error, InsufficientScope):
        fields["error"], scopes = "insufficient_scope", error.scopes
    elif isinstance(error, MalformedAuthorization):
        fields["error"] = "invalid_request"
    elif not isinstance(error, Unauthenticated):
        return {}
    elif not isinstance(error, KeyMissing):
        fields["error"] = "invalid_token"
    if "error" in fields:
        fields["error_description"] = _NOT_QUOTABLE.sub("", error.message)
    fields["scope"] = " ".join(scope_names(settings, scopes))
    fields["resource_metadata"] = (
        settings.public_url.rstrip("/")
        + METADATA_PATH
        + (MCP_PATH if find_route(path).is_mcp else "")
    )
    text = ", ".join(f'{name}="{value}"' for name, value in fields.items())
    return {"WWW-Authenticate": f"Bearer {text}"}


def scope_names(settings: Settings, scopes: tuple[str, ...]) -> list[str]:
    """Translate the gateway's scopes to the identity provider's names."""
    return [f"{settings.oidc_scope_prefix}{scope}" for scope in scopes]


async def _identify(gateway: Gateway, scope: RequestScope) -> Caller | Operator:
    provider = gateway.identity_provider
    text = _bearer(scope, is_strict=provider is not None)
    if provider is None or text.startswith(KEY_PREFIX):
        client: tuple[str, int] | None = scope.get("client")
        return await gateway.api_keys.authenticate(text, address=client[0] if client else "")
    return await provider.authenticate(text)


def _bearer(scope: RequestScope, *, is_strict: bool) -> str:
    """Read the one key or token; `is_strict` tells a malformed header from a missing one."""
    values, keys = [], []
    for name, value in scope["headers"]:
        if name == b"authorization":
            values.append(value)
        elif name == API_KEY_HEADER:
            keys.append(value)
    if len(values) > 1:
        raise MalformedAuthorization("The request has several Authorization headers. Send one.")
    scheme, _, token = "".join(v.decode("latin-1") for v in values).strip().partition(" ")
    token = token.strip()
    if keys:
        return _api_key(keys, token if values else None)
    if scheme.lower() == "bearer" and is_strict and not _TOKEN.fullmatch(token):
        raise MalformedAuthorization(
            "The Authorization header cannot be read. Send 'Authorization: Bearer ' and one key."
        )
    if scheme.lower() != "bearer" or not token:
        raise KeyMissing("No API key was given. Send one as 'Authorization: Bearer igw_…'.")
    return str(token)


def _api_key(values: Sequence[bytes], bearer: str | None) -> str:
    """Read the key of an `api-key` header, as clients of Azure's API send it; never a token."""
    key = values[0].decode("latin-1").strip()
    if len(values) > 1:
        raise MalformedAuthorization("The request has several api-key headers. Send one.")
    if bearer is not None and bearer != key:
        raise MalformedAuthorization(
            "The api-key and Authorization headers differ. Send the key in one of them."
        )
    if not key.startswith(KEY_PREFIX):
        raise KeyMissing("The api-key header does not contain a key of this gateway (igw_…).")
    return key


def _header(scope: RequestScope, name: bytes) -> str:
    found = (value.decode("latin-1") for key, value in scope["headers"] if key == name)
    return next(found, "").strip()


def _insufficient(caller: Caller, *scopes: Scope) -> InsufficientScope:
    what = "token" if caller.api_key_id is None else "API key"
    return insufficient_scope(what, caller.scopes, needed=scopes)


def insufficient_scope(
    what: str, scopes: Collection[str], *, needed: Sequence[Scope]
) -> InsufficientScope:
    """Build the refusal of an API key or token that has these scopes and none of those needed."""
    return InsufficientScope(
        f"This {what} lacks the scope {' or '.join(needed)}; it has: "
        f"{', '.join(sorted(scopes)) or 'none'}.",
        scopes=needed,
    )


def _check_side(caller: Caller | Operator, route: WebRoute) -> None:
    """Raise `Forbidden` for a tenant's key on operators' routes, or an admin key elsewhere."""
    for_operators = route.access is Access.OPERATOR
    if for_operators and not isinstance(caller, Operator):
        raise Forbidden("This route needs an admin key (igw_admin_…).")
    if not for_operators and isinstance(caller, Operator):
        raise Forbidden(
            "An admin key cannot make images. Use a tenant's key (igw_live_…, igw_test_…)."
        )
