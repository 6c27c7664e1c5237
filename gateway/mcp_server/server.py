"""The MCP server and its routes in the application: stateless streamable HTTP at /mcp."""

from collections.abc import Mapping
from functools import partial
from urllib.parse import urlsplit

import structlog
from mcp.server.caching import CacheHint
from mcp.server.context import CallNext, HandlerResult
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp.types import INTERNAL_ERROR
from pydantic import ValidationError
from starlette.routing import Route

from gateway import __version__
from gateway.config import Settings
from gateway.errors import GatewayError, InternalError
from gateway.mcp_server import completions, prompts, resources, tools
from gateway.mcp_server.calls import Context, protocol_error
from gateway.mcp_server.endpoint import McpEndpoint, replaying
from gateway.mcp_server.prompt_files import PromptTemplate
from gateway.mcp_server.prompt_templates import load_templates
from gateway.mcp_server.sse import SseFront
from gateway.request_record import current
from gateway.web.routes import MCP_PATH

INSTRUCTIONS = (
    "Makes and edits images. generate_image and edit_image answer with a small preview and a link "
    "to the full image: show the link to the user. Each image costs money; the answer states "
    "how much. estimate_cost gives the cost beforehand, get_usage the remaining budgets. To change "
    "an image made here, give its generated-images:// URI to edit_image. A call may take two "
    "minutes: wait for it, and never repeat a call whose outcome is unknown without reading "
    "image-history://recent first."
)
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# Answers that do not depend on the caller may be cached by clients and by proxies.
SAME_FOR_ALL = CacheHint(ttl_ms=300_000, scope="public")
PROTOCOL_ERROR = "mcp_protocol_error"
"""Error code recorded if the protocol itself refuses: unknown method, tool or parameter."""
log = structlog.get_logger(__name__)


class McpFront:
    """The server and its routes; `manager.run()` must be entered while it serves."""

    def __init__(self, settings: Settings) -> None:
        templates = load_templates(settings.prompts_dir)
        self.manager = StreamableHTTPSessionManager(
            build_server(templates),
            # Stateless: any worker can answer any request, in both protocol eras.
            stateless=True,
            security_settings=_transport_security(settings),
            max_request_body_size=settings.max_mcp_body_bytes,
        )
        endpoint = McpEndpoint(
            replaying(StreamableHTTPASGIApp(self.manager)),
            settings,
            max_body_bytes=settings.max_mcp_body_bytes,
        )
        self.routes = [Route(MCP_PATH, endpoint=endpoint)]
        if settings.mcp_sse:
            sse = SseFront(build_server(templates), settings, _transport_security(settings))
            self.routes += sse.routes


def build_server(templates: Mapping[str, PromptTemplate]) -> Server:
    """Build the server with its tools, resources and prompts."""
    server = Server(
        "image-gateway",
        title="Image Gateway",
        version=__version__,
        instructions=INSTRUCTIONS,
        cache_hints={
            "tools/list": SAME_FOR_ALL,
            "resources/templates/list": SAME_FOR_ALL,
            "prompts/list": SAME_FOR_ALL,
        },
        get_tool_input_schema=tools.input_schema,
        on_list_tools=tools.list_tools,
        on_call_tool=tools.call_tool,
        on_list_resources=resources.list_resources,
        on_list_resource_templates=resources.list_resource_templates,
        on_read_resource=resources.read_resource,
        on_list_prompts=partial(prompts.list_prompts, templates),
        on_get_prompt=partial(prompts.get_prompt, templates),
        on_completion=partial(completions.complete, templates),
    )
    server.middleware.append(_say_errors)
    return server


async def _say_errors(ctx: Context, call_next: CallNext) -> HandlerResult:
    """Convert errors to the protocol's; the text of a defect is only logged."""
    try:
        return await call_next(ctx)
    except GatewayError as error:
        raise protocol_error(error) from None
    except (MCPError, ValidationError):
        current().error_code = current().error_code or PROTOCOL_ERROR
        raise
    except Exception:  # top: the library would send the text of a defect to the client
        current().error_code = InternalError.code
        log.exception("mcp_defect", method=ctx.method)
        raise MCPError(
            INTERNAL_ERROR,
            "internal_error: The gateway failed unexpectedly; the error has been logged. Do not "
            "repeat a call that makes images before reading image-history://recent.",
        ) from None


def _transport_security(settings: Settings) -> TransportSecuritySettings:
    hosts = _allowed_hosts(settings)
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=hosts,
        allowed_origins=[f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts],
    )


def _is_bare_ipv6(host: str) -> bool:
    return host.count(":") > 1 and not host.startswith("[")


def _allowed_hosts(settings: Settings) -> list[str]:
    """The public address, loopback, and the operator's additions (GATEWAY_ALLOWED_HOSTS)."""
    public = urlsplit(settings.public_url).hostname or "127.0.0.1"
    # Clients send names in lower case, or as they were given; an address of IPv6 in brackets.
    given = [name for one in settings.extra_hosts for name in (one, one.lower())]
    public, *extra = (f"[{one}]" if _is_bare_ipv6(one) else one for one in (public, *given))
    names = dict.fromkeys((public, *LOOPBACK, *extra))
    return [pattern for name in names for pattern in (name, f"{name}:*")]
