"""The models that a key may use, with their dates and capabilities."""

from datetime import UTC, datetime
from datetime import time as day_time

from fastapi import APIRouter

from gateway.domain import Model
from gateway.rest.dependencies import GatewayDep, ImageReader

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="The models that this key may use")
async def list_models(gateway: GatewayDep, caller: ImageReader) -> dict[str, object]:
    """Living models only, as OpenAI lists them, with dates and capabilities besides."""
    models = [render_model(model) for model in gateway.core.catalog.available(caller)]
    return {"object": "list", "data": models}


@router.get("/v1/models/{model_id}", summary="One model")
async def get_model(model_id: str, gateway: GatewayDep, caller: ImageReader) -> dict[str, object]:
    """A living model that this key may use."""
    return render_model(gateway.core.catalog.find(caller, model_id))


def render_model(model: Model) -> dict[str, object]:
    """OpenAI's model object, extended."""
    released = datetime.combine(model.released or datetime.now(UTC).date(), day_time(), UTC)
    rule = model.sizes
    sizes: dict[str, object] = (
        {"fixed": [*rule.fixed, "auto"]}
        if rule.fixed
        else {
            "multiple_of": rule.multiple_of,
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
        "capabilities": {
            "endpoints": sorted(model.endpoints),
            "sizes": sizes,
            "qualities": list(model.qualities),
            "output_formats": list(model.output_formats),
            "backgrounds": list(model.backgrounds),
            "max_images": model.max_images,
            "max_prompt_characters": model.max_prompt_characters,
        },
    }
