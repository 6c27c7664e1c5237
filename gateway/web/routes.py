"""The routes, each written down once: who may ask, its label, and what admission it needs.

Fronts define what a route does; this table is what the layers around them need to know of it.
"""

from dataclasses import dataclass
from enum import Enum, auto

MCP_PATH = "/mcp"
SSE_PATH, SSE_MESSAGES_PATH = "/sse", "/sse/messages"
"""The MCP transport of 2024, where the operator has switched it on."""
METADATA_PATH = "/.well-known/oauth-protected-resource"
METRICS_PATH = "/metrics"


class Access(Enum):
    """Whose key a route needs."""

    OPEN = auto()
    TENANT = auto()
    OPERATOR = auto()


class Admitted(Enum):
    """How a tenant's request is admitted under load."""

    ORDINARY = auto()
    PURCHASE = auto()
    """Refused at once while no further generation could start."""
    UPLOAD = auto()
    """A purchase whose body takes its time: admitted in the pipeline, once the body is there."""


@dataclass(frozen=True, slots=True)
class WebRoute:
    """One path, or all paths below one that ends in a slash."""

    path: str
    access: Access = Access.TENANT
    admission: Admitted = Admitted.ORDINARY
    may_show_secret: bool = False
    """No cache may keep an answer, by whichever layer it was made."""
    is_quiet: bool = False
    """Requests are not logged: probes, and the scraping of metrics."""
    is_mcp: bool = False
    """The scopes of MCP apply."""
    speaks_json_rpc: bool = False
    """Clients expect errors as JSON-RPC."""

    @property
    def label(self) -> str:
        """The value in metrics and logs, from a closed set: clients must not add to it."""
        return self.path + "{id}" if self.path.endswith("/") else self.path


ROUTES = (
    WebRoute("/health", Access.OPEN, is_quiet=True),
    WebRoute("/ready", Access.OPEN, is_quiet=True),
    WebRoute("/docs", Access.OPEN),
    WebRoute("/docs-assets/", Access.OPEN),
    WebRoute("/openapi.json", Access.OPEN),
    WebRoute("/images/", Access.OPEN),
    WebRoute(METADATA_PATH, Access.OPEN),
    WebRoute(METADATA_PATH + MCP_PATH, Access.OPEN),
    WebRoute(METRICS_PATH, Access.OPERATOR, is_quiet=True),
    WebRoute("/admin/", Access.OPERATOR, may_show_secret=True),
    WebRoute("/v1/images/generations", admission=Admitted.PURCHASE),
    WebRoute("/v1/images/edits", admission=Admitted.UPLOAD),
    WebRoute("/v1/images/variations", admission=Admitted.UPLOAD),
    WebRoute("/v1/images/quotes"),
    WebRoute("/v1/images"),
    WebRoute("/v1/images/"),
    WebRoute("/generate_image", admission=Admitted.PURCHASE),
    WebRoute("/edit_image", admission=Admitted.UPLOAD),
    WebRoute("/v1/models"),
    WebRoute("/v1/models/"),
    WebRoute("/v1/usage"),
    WebRoute("/v1/budgets"),
    WebRoute("/v1/requests"),
    WebRoute("/v1/requests/"),
    WebRoute("/v1/limits"),
    WebRoute("/v1/limits/"),
    WebRoute("/v1/keys", may_show_secret=True),
    WebRoute("/v1/keys/", may_show_secret=True),
    WebRoute("/v1/users", may_show_secret=True),
    WebRoute("/v1/users/", may_show_secret=True),
    WebRoute("/v1/webhooks", may_show_secret=True),
    WebRoute("/v1/webhooks/", may_show_secret=True),
    WebRoute("/v1/credentials/", may_show_secret=True),
    WebRoute("/mcp/v1/tools/generate_image", admission=Admitted.PURCHASE, is_mcp=True),
    WebRoute("/mcp/", is_mcp=True),
    WebRoute(MCP_PATH, is_mcp=True, speaks_json_rpc=True),
    WebRoute(SSE_PATH, is_mcp=True, speaks_json_rpc=True),
    WebRoute(SSE_MESSAGES_PATH, is_mcp=True, speaks_json_rpc=True),
)
WELCOME = WebRoute("/", Access.OPEN)
OTHER = WebRoute("other")
"""Every path that is not listed: it needs a tenant's key, and is then not found."""
_BY_PATH = {route.path: route for route in (*ROUTES, WELCOME)}
_PREFIXES = sorted(
    (route for route in ROUTES if route.path.endswith("/")), key=lambda r: -len(r.path)
)


def find_route(path: str) -> WebRoute:
    """The route of a request's path."""
    found = _BY_PATH.get(path)
    if found is not None:
        return found
    return next((route for route in _PREFIXES if path.startswith(route.path)), OTHER)
