"""The tools: each checks the caller's scope, calls the pipeline, and renders a result that fits."""

import asyncio
import base64
from collections.abc import Awaitable, Mapping
from typing import Annotated, Any, Literal, cast

import structlog
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
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
from gateway.errors import GatewayError, InvalidRequest, Unavailable, envelope
from gateway.images.decoding import Decoder
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


GENERATE_IMAGE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string", "description": "What the image shows, in any language."},
        "model": {
            "type": "string",
            "description": "E.g. gpt-image-2.5-flare (fast). Leave out for the default.",
        },
        "size": {
            "type": "string",
            "description": "WIDTHxHEIGHT, e.g. 1024x1024 or 1536x1024, or auto.",
        },
        "quality": {
            "type": "string",
            "description": "low, medium, high or auto. Low is cheapest.",
        },
        "n": {
            "type": "integer",
            "minimum": 1,
            "maximum": 10,
            "description": "How many images. Default 1.",
        },
        "background": {
            "type": "string",
            "enum": ["transparent", "opaque", "auto"],
            "description": "transparent needs output_format png or webp.",
        },
        "output_format": {
            "type": "string",
            "enum": ["png", "jpeg", "webp"],
            "description": "File format. Default png.",
        },
    },
    "required": ["prompt"],
    "additionalProperties": False,
}


def all_tools() -> list[Tool]:
    """Every tool of the server."""
    tool = Tool.from_function(
        generate_image,
        title="Generate an image",
        annotations=ToolAnnotations(
            read_only_hint=False,
            destructive_hint=False,
            idempotent_hint=False,
            open_world_hint=True,
        ),
    )
    # The arguments are checked by the same code as REST's, with the same errors; a misspelt one
    # must not buy something else than was meant.
    tool.parameters = GENERATE_IMAGE_SCHEMA
    return [tool]


async def generate_image(ctx: Context) -> Annotated[CallToolResult, GenerateImageResult]:
    """Make an image from a text. Costs money; answers with a preview, a link and the cost."""
    try:
        gateway, caller = _request_state(ctx)
        require_scope(caller, Scope.IMAGES_WRITE)
        request = parse_image_request(
            _arguments(ctx),
            caller,
            gateway.core.catalog,
            default_model=gateway.settings.default_model,
            default_response_format="url",
        )
        generation = await _with_progress(ctx, gateway.pipeline.generate(caller, request))
    except GatewayError as error:
        return render_error(error)
    return await _render(generation, gateway.finisher)


def _arguments(ctx: Context) -> Mapping[str, object]:
    """The tool's arguments as they were sent."""
    arguments = (ctx.request_context.params or {}).get("arguments") or {}
    for name in arguments:
        if name not in GENERATE_IMAGE_SCHEMA["properties"]:
            raise InvalidRequest(
                f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name
            )
    return cast("Mapping[str, object]", arguments)


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


async def _render(generation: Generation, finisher: Decoder) -> CallToolResult:
    images = [
        GeneratedImage(id=image.id, url=image.url, media_type=image.media_type)
        for image in generation.images
        if image.url is not None
    ]
    result = GenerateImageResult(
        id=images[0].id,
        url=images[0].url,
        images=images,
        model=generation.served.model.id,
        requested_model=generation.request.requested_model,
        size=generation.answer.size,
        quality=generation.answer.quality,
        cost_usd=format_usd(generation.cost_nano),
        cost_status=generation.cost_status.value,
    )
    return CallToolResult(
        content=[*await _content(generation, finisher), _summary(result)],
        structured_content=result.model_dump(mode="json"),
    )


async def _content(generation: Generation, finisher: Decoder) -> list[ContentBlock]:
    previews = await asyncio.gather(
        *(make_preview(finisher, image.base64) for image in generation.images)
    )
    blocks: list[ContentBlock] = []
    for image, preview in zip(generation.images, previews, strict=True):
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
