"""The tools: each checks the caller's scope, calls the pipeline, and renders a result that fits."""

import asyncio
import base64
from collections.abc import Awaitable
from typing import Annotated, Literal

import structlog
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.types import (
    CallToolResult,
    ContentBlock,
    ImageContent,
    ResourceLink,
    TextContent,
    ToolAnnotations,
)
from pydantic import BaseModel, Field
from starlette.requests import Request

from gateway import telemetry
from gateway.authentication import require_scope
from gateway.bootstrap import Gateway
from gateway.domain import Caller, Generation, Scope
from gateway.errors import GatewayError, Unavailable, envelope
from gateway.images.parameters import parse_image_request
from gateway.images.previews import make_preview
from gateway.money import format_usd

PROGRESS_SECONDS = 2.0
log = structlog.get_logger(__name__)


class GeneratedImage(BaseModel):
    """One stored image."""

    id: str
    url: str
    media_type: str


class GenerateImageResult(BaseModel):
    """What `generate_image` made. Links expire; `cost_usd` is a decimal string."""

    id: str = Field(description="Id of the first image.")
    url: str = Field(description="Link to the first image in full size.")
    images: list[GeneratedImage]
    model: str
    requested_model: str
    size: str | None
    quality: str | None
    cost_usd: str
    cost_status: Literal["actual", "estimated", "pending"]


def add_tools(server: MCPServer) -> None:
    """Register every tool."""
    server.tool(
        title="Generate an image",
        annotations=ToolAnnotations(
            read_only_hint=False,
            destructive_hint=False,
            idempotent_hint=False,
            open_world_hint=True,
        ),
    )(generate_image)


async def generate_image(  # noqa: PLR0917 - called by name, from the tool's arguments
    ctx: Context,
    prompt: Annotated[str, Field(description="What the image shows, in any language.")],
    model: Annotated[
        str | None, Field(description="E.g. gpt-image-2.5-flare (fast). Leave out for the default.")
    ] = None,
    size: Annotated[
        str | None, Field(description="WIDTHxHEIGHT, e.g. 1024x1024 or 1536x1024, or auto.")
    ] = None,
    quality: Annotated[
        str | None, Field(description="low, medium, high or auto. Low is cheapest.")
    ] = None,
    n: Annotated[int | None, Field(description="How many images, 1 to 10. Default 1.")] = None,
    background: Annotated[
        str | None, Field(description="transparent (png, webp), opaque or auto.")
    ] = None,
    output_format: Annotated[str | None, Field(description="png, jpeg or webp.")] = None,
) -> Annotated[CallToolResult, GenerateImageResult]:
    """Make an image from a text. Costs money; answers with a preview, a link and the cost."""
    body: dict[str, object] = {
        "prompt": prompt,
        "model": model,
        "size": size,
        "quality": quality,
        "n": n,
        "background": background,
        "output_format": output_format,
        "response_format": "url",
    }
    try:
        gateway, caller = _request_state(ctx)
        require_scope(caller, Scope.IMAGES_WRITE)
        request = parse_image_request(
            body, caller, gateway.core.catalog, default_model=gateway.settings.default_model
        )
        generation = await _with_progress(ctx, gateway.pipeline.generate(caller, request))
    except GatewayError as error:
        return render_error(error)
    return await asyncio.to_thread(_render, generation)


def render_error(error: GatewayError) -> CallToolResult:
    """A tool error with the same code as REST, readable for a model."""
    telemetry.errors_total.labels(error.code).inc()
    return CallToolResult(
        content=[TextContent(type="text", text=f"{error.code}: {error.message}")],
        structured_content={**envelope(error)},
        is_error=True,
    )


def _request_state(ctx: Context) -> tuple[Gateway, Caller]:
    request: Request | None = ctx.request_context.request
    if request is None:
        raise Unavailable("This server answers over HTTP only.", code="transport_unsupported")
    gateway: Gateway = request.state.gateway
    caller: Caller = request.state.caller
    return gateway, caller


async def _with_progress(ctx: Context, work: Awaitable[Generation]) -> Generation:
    """Report that the model still works, so that a client does not give up on a slow image."""
    task = asyncio.ensure_future(work)
    seconds = 0.0
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=PROGRESS_SECONDS)
            seconds += PROGRESS_SECONDS
            if not task.done():
                await ctx.report_progress(seconds, None, "The model is working")
        return await task
    finally:
        task.cancel()


def _render(generation: Generation) -> CallToolResult:
    images = [
        GeneratedImage(id=image.id, url=image.url, media_type=image.media_type)
        for image in generation.images
        if image.url is not None
    ]
    result = GenerateImageResult(
        id=images[0].id,
        url=images[0].url,
        images=images,
        model=generation.request.model.id,
        requested_model=generation.request.requested_model,
        size=generation.answer.size,
        quality=generation.answer.quality,
        cost_usd=format_usd(generation.cost_nano),
        cost_status=generation.cost_status.value,
    )
    return CallToolResult(
        content=[*_content(generation), _summary(result)],
        structured_content=result.model_dump(mode="json"),
    )


def _content(generation: Generation) -> list[ContentBlock]:
    blocks: list[ContentBlock] = []
    for image in generation.images:
        preview = make_preview(image.base64)
        if preview is not None:
            encoded = base64.b64encode(preview).decode()
            blocks.append(ImageContent(type="image", data=encoded, mime_type="image/webp"))
        blocks.append(
            ResourceLink(
                type="resource_link",
                uri=image.url or "",
                name=image.id,
                title="Full image",
                mime_type=image.media_type,
            )
        )
    return blocks


def _summary(result: GenerateImageResult) -> TextContent:
    links = "\n".join(image.url for image in result.images)
    text = f"Made with {result.model} for {result.cost_usd} USD ({result.cost_status}).\n{links}"
    return TextContent(type="text", text=text)
