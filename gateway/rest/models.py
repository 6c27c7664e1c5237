"""The models that a key may use, with their dates and capabilities."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from datetime import time as day_time

from fastapi import APIRouter

from gateway.billing.price_lists import PriceList
from gateway.bootstrap import Gateway
from gateway.domain import Caller
from gateway.errors import ModelRetired, NotFound
from gateway.image_models import Model
from gateway.rest.dependencies import GatewayDep, ImageFiles
from gateway.rest.schemas import ModelList, ModelObject

router = APIRouter(tags=["models"])


@router.get(
    "/v1/models",
    summary="List the models that this key may use",
    response_model=None,
    responses={200: {"model": ModelList}},
)
async def list_models(gateway: GatewayDep, caller: ImageFiles) -> dict[str, object]:
    """List models as OpenAI does, with dates and capabilities; includes retired ones that a
    successor serves.
    """
    catalog = gateway.core.catalog
    available = list(catalog.available(caller))
    ready = await gateway.hosts.readiness(available) if caller.livemode else {}
    models = [
        await _shown(gateway, caller, model, is_ready=ready.get(model.id)) for model in available
    ]
    return {"object": "list", "data": models}


@router.get(
    "/v1/models/{model_id}",
    summary="Show a model",
    response_model=None,
    responses={200: {"model": ModelObject}},
)
async def get_model(model_id: str, gateway: GatewayDep, caller: ImageFiles) -> dict[str, object]:
    """Return a model that this key may use."""
    try:
        model = gateway.core.catalog.find(caller, model_id)
    except ModelRetired as error:
        # OpenAI answers 404 here, but 400 where images are made.
        raise NotFound(error.message, code="model_not_found", param="model") from None
    ready = await gateway.hosts.readiness([model]) if caller.livemode else {}
    return await _shown(gateway, caller, model, is_ready=ready.get(model.id))


async def _shown(
    gateway: Gateway, caller: Caller, model: Model, *, is_ready: bool | None
) -> dict[str, object]:
    catalog = gateway.core.catalog
    serving = catalog.serving(model, livemode=caller.livemode)
    price = await gateway.pipeline.price_list(serving)
    return render_model(model, serving, catalog.fallbacks(model.id), price=price, is_ready=is_ready)


def render_model(
    model: Model,
    serving: Model,
    fallbacks: Sequence[Model] = (),
    *,
    price: PriceList | None = None,
    is_ready: bool | None = None,
) -> dict[str, object]:
    """Render OpenAI's model object, extended; `served_model` is the model that makes the images.

    `is_ready`: the last word of an operator's own host; None for any other model.
    """
    released = datetime.combine(model.released or datetime.now(UTC).date(), day_time(), UTC)
    rule = model.sizes
    sizes: dict[str, object] = (
        {"fixed": [*rule.fixed, *(["auto"] if rule.auto else [])]}
        if rule.fixed
        else {
            "multiple_of": rule.multiple_of,
            **({"min_edge": rule.min_edge} if rule.min_edge else {}),
            "max_edge": rule.max_edge,
            "max_aspect_ratio": rule.max_ratio,
            "min_pixels": rule.min_pixels,
            "max_pixels": rule.max_pixels,
        }
    )
    return {
        "id": model.id,
        "object": "model",
        "created": int(released.timestamp()),
        "owned_by": model.provider,
        "shutdown_date": None if model.shutdown_date is None else model.shutdown_date.isoformat(),
        "successor": model.successor,
        "served_model": serving.id,
        "fallbacks": [fallback.id for fallback in fallbacks],
        "ready": is_ready,
        "price": None if price is None else asdict(price),
        "capabilities": {
            "endpoints": sorted(model.endpoints),
            "parameters": sorted(model.parameters),
            "sizes": sizes,
            "qualities": list(model.qualities),
            "output_formats": list(model.output_formats),
            "backgrounds": list(model.backgrounds),
            "max_images": model.max_images,
            "max_input_images": model.inputs.max_images,
            "max_prompt_characters": model.max_prompt_characters,
        },
    }
