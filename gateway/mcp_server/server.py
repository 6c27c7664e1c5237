"""The MCP server and its place in the application: streamable HTTP at /mcp, stateless."""

from urllib.parse import urlsplit

from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.routing import BaseRoute

from gateway import __version__
from gateway.config import Settings
from gateway.mcp_server.tools import all_tools

INSTRUCTIONS = (
    "Makes images. generate_image answers with a small preview and a link to the full image; "
    "show the link to the person. Each image costs money, and the answer says how much."
)
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def build_mcp_server() -> MCPServer:
    """The server with its tools."""
    return MCPServer(
        name="image-gateway",
        title="Image Gateway",
        version=__version__,
        instructions=INSTRUCTIONS,
        subscriptions=False,
        tools=all_tools(),
    )


def mcp_routes(server: MCPServer, settings: Settings) -> list[BaseRoute]:
    """The routes that serve `/mcp`.

    Stateless: any worker can answer any request, in both protocol eras.
    """
    app = server.streamable_http_app(
        streamable_http_path="/mcp",
        stateless_http=True,
        max_request_body_size=settings.max_body_bytes,
        transport_security=TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=_allowed_hosts(settings),
            allowed_origins=[
                f"{scheme}://{host}"
                for scheme in ("http", "https")
                for host in _allowed_hosts(settings)
            ],
        ),
    )
    return list(app.routes)


def _allowed_hosts(settings: Settings) -> list[str]:
    """The public address, loopback, and what the operator adds (GATEWAY_ALLOWED_HOSTS)."""
    public = urlsplit(settings.public_url).hostname or "127.0.0.1"
    names = dict.fromkeys((public, *LOOPBACK, *settings.extra_hosts))
    return [pattern for name in names for pattern in (name, f"{name}:*")]
