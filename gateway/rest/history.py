"""The caller's own images: list, show, delete."""

import time
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.convertors import Convertor, register_url_convertor

from gateway.bootstrap import Gateway
from gateway.library import history
from gateway.library.history import HostedImage
from gateway.library.links import LinkKind
from gateway.library.retention import link_expiry
from gateway.money import NanoUsd, format_usd
from gateway.rest.calls import sum_calls
from gateway.rest.dependencies import ActorDep, GatewayDep, ImageFiles, ImageWriter
from gateway.rest.refusals import refused_with
from gateway.rest.schemas import (
    GenerationOfImage,
    ImageDeleted,
    ImageList,
    ImageListQuery,
    ImageObject,
)

router = APIRouter(tags=["history"])


class ImageIdConvertor(Convertor[str]):
    """An image id in a path, by its prefix: it does not match `generations` and its siblings."""

    regex = "img_[^/]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("image_id", ImageIdConvertor())

ONE_IMAGE = "/v1/images/{image_id:image_id}"
ImageId = Annotated[
    str,
    Path(
        description="The image's id.",
        examples=["img_19aa5f27c00_9f86d081884c7d65"],
        json_schema_extra={"pattern": "^img_[0-9a-z_]{1,100}$"},
    ),
]


@router.get("/v1/images", summary="List your images")
async def list_images(
    gateway: GatewayDep, caller: ImageFiles, query: Annotated[ImageListQuery, Query()]
) -> ImageList:
    """List images, newest first; the next page begins `after` the `last_id` of this one.

    A key of one user sees that user's images, any other key the whole tenant's; test and live
    images never mix.
    """
    async with gateway.database.tenant(caller.tenant_id) as session:
        page = await history.list_images(
            session, caller, limit=query.limit, after=query.after, model=query.model
        )
    data = [render_image(gateway, image) for image in page.images]
    return ImageList(
        data=data,
        has_more=page.has_more,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )


@router.get(ONE_IMAGE, summary="Show an image")
async def get_image(image_id: ImageId, gateway: GatewayDep, caller: ImageFiles) -> ImageObject:
    """Return an image's metadata, with fresh links."""
    async with gateway.database.tenant(caller.tenant_id) as session:
        image = await history.find_image(session, caller, image_id)
    return render_image(gateway, image)


@router.delete(ONE_IMAGE, summary="Delete an image", responses=refused_with(500))
async def delete_image(
    image_id: ImageId, gateway: GatewayDep, caller: ImageWriter, actor: ActorDep
) -> ImageDeleted:
    """Delete image, thumbnail and prompt permanently; the cost stays in the ledger."""
    await history.delete_image(gateway.database, gateway.store, caller, image_id, by=actor)
    return ImageDeleted(id=image_id)


def render_image(gateway: Gateway, image: HostedImage) -> ImageObject:
    """Render the public object, with links that are valid from now on."""
    expires_at = int(image.expires_at.timestamp())
    until = link_expiry(
        int(time.time()),
        link_seconds=gateway.settings.image_ttl_seconds,
        image_expires_at=expires_at,
    )
    cost = None if image.cost_nano is None else format_usd(NanoUsd(image.cost_nano))
    return ImageObject(
        id=image.id,
        created_at=int(image.created_at.timestamp()),
        expires_at=expires_at,
        model=image.requested_model,
        served_model=image.served_model,
        operation=image.operation,
        width=image.width,
        height=image.height,
        media_type=image.media_type,
        size_bytes=image.size_bytes,
        provenance=image.provenance,
        seed=image.seed,
        prompt=image.prompt,
        prompt_hash=None if image.prompt_hash is None else image.prompt_hash.hex(),
        url=gateway.links.sign(image.id, image.path, until),
        thumbnail_url=gateway.links.sign(image.id, image.path, until, LinkKind.THUMBNAIL),
        generation=GenerationOfImage(
            id=str(image.generation_id),
            cost_usd=cost,
            cost_status=image.cost_status.value,
            images=image.generation_images,
            **sum_calls(image.calls).model_dump(),
        ),
    )
