"""The table of routes: for each, the required key, the label, and the kind of admission.

The fronts implement the routes; the layers around them read this table. docs/routes.md shows it.
"""

from dataclasses import dataclass
from enum import Enum, auto

MCP_PATH = "/mcp"
SSE_PATH, SSE_MESSAGES_PATH = "/sse", "/sse/messages"
"""The HTTP+SSE transport of 2024-11-05, if the operator has enabled it."""
METADATA_PATH = "/.well-known/oauth-protected-resource"
METRICS_PATH = "/metrics"
CONSOLE_PATH = "/console"


class Access(Enum):
    """The kind of key that a route needs."""

    OPEN = auto()
    TENANT = auto()
    OPERATOR = auto()
    SESSION = auto()
    """A page of the console: no key counts, and its own dependency asks for a session."""


class AdmissionClass(Enum):
    """The admission of a tenant's request under load."""

    ORDINARY = auto()
    PURCHASE = auto()
    """Refused at once while no further generation can start."""
    UPLOAD = auto()
    """A purchase with a slow body: admitted in the pipeline, once the body is complete."""


@dataclass(frozen=True, slots=True)
class WebRoute:
    """One path, or all paths below one that ends in a slash."""

    path: str
    access: Access = Access.TENANT
    admission: AdmissionClass = AdmissionClass.ORDINARY
    may_show_secret: bool = False
    """Answers get `Cache-Control: no-store`, from whichever layer they come."""
    is_quiet: bool = False
    """Requests are not logged: probes and metrics."""
    is_mcp: bool = False
    """The scopes of MCP apply."""
    speaks_json_rpc: bool = False
    """Errors are answered as JSON-RPC."""

    @property
    def label(self) -> str:
        """The value in metrics and logs, from a closed set, so that clients cannot add to it."""
        is_prefix = self.path.endswith("/") and self.path != "/"
        return self.path + "{id}" if is_prefix else self.path


ROUTES = (
    WebRoute("/health", Access.OPEN, is_quiet=True),
    WebRoute("/ready", Access.OPEN, is_quiet=True),
    WebRoute("/docs", Access.OPEN),
    WebRoute("/docs/operators", Access.OPEN),
    WebRoute("/docs-assets/", Access.OPEN),
    WebRoute("/openapi.json", Access.OPEN),
    WebRoute("/images/", Access.OPEN),
    WebRoute("/console/static/", Access.OPEN, is_quiet=True),
    WebRoute(CONSOLE_PATH, Access.SESSION),
    WebRoute(CONSOLE_PATH + "/", Access.SESSION),
    WebRoute(METADATA_PATH, Access.OPEN),
    WebRoute(METADATA_PATH + MCP_PATH, Access.OPEN),
    WebRoute(METRICS_PATH, Access.OPERATOR, is_quiet=True),
    WebRoute("/admin/", Access.OPERATOR, may_show_secret=True),
    WebRoute("/v1/images/generations", admission=AdmissionClass.PURCHASE),
    WebRoute("/v1/images/edits", admission=AdmissionClass.UPLOAD),
    WebRoute("/v1/images/variations", admission=AdmissionClass.UPLOAD),
    WebRoute("/v1/images/quotes"),
    WebRoute("/v1/images"),
    WebRoute("/v1/images/"),
    WebRoute("/generate_image", admission=AdmissionClass.PURCHASE),
    WebRoute("/edit_image", admission=AdmissionClass.UPLOAD),
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
    WebRoute("/mcp/v1/tools/generate_image", admission=AdmissionClass.PURCHASE, is_mcp=True),
    WebRoute("/mcp/", is_mcp=True),
    WebRoute(MCP_PATH, is_mcp=True, speaks_json_rpc=True),
    WebRoute(SSE_PATH, is_mcp=True, speaks_json_rpc=True),
    WebRoute(SSE_MESSAGES_PATH, is_mcp=True, speaks_json_rpc=True),
)
WELCOME = WebRoute("/", Access.OPEN)
OTHER = WebRoute("other")
"""All unlisted paths: they need a tenant's key, and are answered with 404."""
_BY_PATH = {route.path: route for route in (*ROUTES, WELCOME)}
_PREFIXES = sorted(
    (route for route in ROUTES if route.path.endswith("/")), key=lambda r: -len(r.path)
)


def find_route(path: str) -> WebRoute:
    """Find the route of a request's path."""
    found = _BY_PATH.get(path)
    if found is not None:
        return found
    return next((route for route in _PREFIXES if path.startswith(route.path)), OTHER)
