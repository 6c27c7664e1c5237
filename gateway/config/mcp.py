"""Settings of the MCP front."""

from pathlib import Path

from pydantic import Field

from gateway.config.base import SettingsGroup


class McpSettings(SettingsGroup):
    """MCP clients and prompt templates, for each process (docs/mcp.md)."""

    allowed_hosts: str = Field(
        default="",
        description="Further host names under which MCP clients may call, separated by commas. The "
        "host of `GATEWAY_PUBLIC_URL` and loopback are always allowed.",
        examples=["images.example.com,images.internal"],
    )
    prompts_dir: Path | None = Field(
        default=None,
        description="A directory of prompt templates of your own, which add to or replace the ten "
        "built-in ones (docs/prompts.md). A mistake in one of them refuses to start.",
        examples=["/etc/image-gateway/prompts"],
    )
    max_mcp_body_bytes: int = Field(
        default=33_554_432,
        ge=1024,
        description="The bytes of one MCP request, with its images as data: URLs.",
    )
    max_concurrent_mcp_requests: int = Field(
        default=512, ge=1, description="MCP requests at once. One tenant gets at most half."
    )
    max_concurrent_large_mcp_requests: int = Field(
        default=16,
        ge=1,
        description="MCP requests at once with a body of more than 256 kB or an image read as a "
        "resource. They stay in memory until their answer has been sent.",
    )
    mcp_send_seconds: float = Field(
        default=60.0,
        gt=0,
        description="The seconds after which an MCP client that reads nothing of its answer is "
        "disconnected.",
    )
    mcp_sse: bool = Field(
        default=False,
        description="Serve the HTTP+SSE transport of 2024 at `/sse`, for clients that know nothing "
        "newer. A session lives in one process, so it cannot be combined with several workers.",
    )
    max_mcp_sse_streams: int = Field(
        default=256,
        ge=1,
        description="Open HTTP+SSE streams. One tenant gets at most half.",
    )

    @property
    def extra_hosts(self) -> list[str]:
        """Further host names under which MCP clients may call."""
        return [host.strip() for host in self.allowed_hosts.split(",") if host.strip()]
