"""A generation as a tool result: a small preview, a link, a sentence and data.

Base64 appears in image blocks only, never in text or structured content, so that every result fits
a context window.
"""

import asyncio
import base64
import time
from datetime import UTC, datetime
from typing import Literal

from mcp.types import CallToolResult, ContentBlock, ImageContent, ResourceLink, TextContent
from pydantic import BaseModel, Field

from gateway.domain import Generation, StorageState, StoredImage
from gateway.errors import StorageFailed
from gateway.generation.image_references import HOSTED_SCHEME
from gateway.generation.results import dimensions
from gateway.mcp_server.calls import COST_META, cost_meta
from gateway.media.decoder import Decoder
from gateway.media.previews import make_preview
from gateway.money import format_usd

MAX_UNIX_SECONDS = 253_402_300_800
"""The year 10000, which `datetime` cannot represent."""
MAX_FULL_IMAGE_BASE64 = 1_000_000
"""Clients refuse results of more than about a megabyte, and end the conversation."""


class MadeImage(BaseModel):
    """One stored image."""

    id: str
    uri: str = Field(description="Address of the resource; edit_image accepts it as input.")
    url: str = Field(description="Link for the user; it expires.")
    media_type: str
    size_bytes: int
    width: int | None
    height: int | None
    seed: int | None


class ImagesMade(BaseModel):
    """The images made. Links expire; `cost_usd` is a decimal string, for all images together."""

    id: str = Field(description="Id of the first image.")
    generation_id: str
    created_at: str
    url: str = Field(description="Link to the first image in full size.")
    images: list[MadeImage]
    model: str = Field(description="The model that made them.")
    requested_model: str
    size: str | None
    quality: str | None
    cost_usd: str
    cost_status: Literal["actual", "estimated", "pending"]
    replayed: bool = Field(
        description="True if an earlier call with the same idempotency_key made and paid for them."
    )


async def show_generation(
    generation: Generation, finisher: Decoder, *, full_image: bool
) -> CallToolResult:
    """Build the result of a tool that made images.

    Raises:
        StorageFailed: the provider's data is not a valid image.
    """
    result = images_made(generation)
    made = result.images
    # An image that is not stored yet is shown whole if it fits: this may be its only copy.
    is_whole = (full_image or generation.kept is StorageState.PENDING) and _fits(generation)
    image_blocks = await asyncio.gather(
        *(_image_block(image, finisher, is_whole=is_whole) for image in generation.images)
    )
    blocks: list[ContentBlock] = []
    for shown, image in zip(image_blocks, made, strict=True):
        blocks += [] if shown is None else [shown]
        blocks.append(
            ResourceLink(
                type="resource_link",
                # Several clients pass this to a model as the address of an image to load.
                uri=image.url,
                name=image.id,
                title="Full image",
                mime_type=image.media_type,
                size=image.size_bytes,
            )
        )
    return CallToolResult(
        content=[
            *blocks,
            _sentence(
                result,
                is_too_large=full_image and not is_whole,
                is_pending=generation.kept is StorageState.PENDING,
            ),
        ],
        structured_content=result.model_dump(mode="json"),
        _meta={COST_META: cost_meta(result.cost_usd, result.model, generation.provider)},
    )


def images_made(generation: Generation) -> ImagesMade:
    """Build a tool's structured content for a generation.

    Raises:
        StorageFailed: the provider's data is not a valid image.
    """
    if generation.kept is StorageState.LOST:
        raise StorageFailed(
            f"The provider's answer was paid for as generation {generation.id}, but it is not a "
            "valid image and cannot be stored or shown."
        )
    made = _made(generation)
    return ImagesMade(
        id=made[0].id,
        generation_id=str(generation.id),
        created_at=_created_at(generation),
        url=made[0].url,
        images=made,
        model=generation.served.model.id,
        requested_model=generation.request.requested_model,
        size=generation.answer.size,
        quality=generation.answer.quality,
        cost_usd=format_usd(generation.cost_nano),
        cost_status=generation.cost_status.value,
        replayed=generation.replayed,
    )


def _made(generation: Generation) -> list[MadeImage]:
    width, height = dimensions(generation.answer.size)
    seeds = generation.answer.seeds or (None,) * len(generation.images)
    return [
        MadeImage(
            id=image.id,
            uri=HOSTED_SCHEME + image.id,
            url=image.url,
            media_type=image.media_type,
            size_bytes=_decoded_bytes(image.base64),
            width=width,
            height=height,
            seed=seed,
        )
        for image, seed in zip(generation.images, seeds, strict=True)
        if image.url is not None
    ]


def _decoded_bytes(encoded: str) -> int:
    return len(encoded) // 4 * 3 - encoded[-2:].count("=")


def _created_at(generation: Generation) -> str:
    seconds = generation.answer.created
    is_known = 0 < seconds < MAX_UNIX_SECONDS  # the format as reported by the provider
    return datetime.fromtimestamp(seconds if is_known else time.time(), UTC).isoformat()


def _fits(generation: Generation) -> bool:
    return sum(len(image.base64) for image in generation.images) <= MAX_FULL_IMAGE_BASE64


async def _image_block(
    image: StoredImage, finisher: Decoder, *, is_whole: bool
) -> ImageContent | None:
    if is_whole:
        return ImageContent(type="image", data=image.base64, mime_type=image.media_type)
    preview = await make_preview(finisher, image.base64)
    if preview is None:
        return None
    encoded = base64.b64encode(preview).decode()
    return ImageContent(type="image", data=encoded, mime_type="image/webp")


def _sentence(result: ImagesMade, *, is_too_large: bool, is_pending: bool) -> TextContent:
    cost = f"{result.cost_usd} USD ({result.cost_status})"
    lines = [f"Made with {result.model} for {cost}."]
    if result.replayed:
        lines = [f"Nothing was bought: made with {result.model} by an earlier call, for {cost}."]
    if result.model != result.requested_model:
        lines.append(f"({result.model} serves in place of {result.requested_model}.)")
    if is_too_large:
        lines.append("Too large to show whole: this is a preview. Read the resource or the link.")
    if is_pending:
        lines.append("The image store does not answer: the link may not work.")
    lines += [f"{image.uri} {image.url}" for image in result.images]
    return TextContent(type="text", text="\n".join(lines))
