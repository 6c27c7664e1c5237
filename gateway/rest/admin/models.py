"""The catalogue as operators see it: all models, also those that no key may use."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from gateway.bootstrap import Gateway
from gateway.catalog.loading import unknown_model
from gateway.errors import ModelRetired
from gateway.image_models import Model
from gateway.rest.admin.dependencies import NoQuery
from gateway.rest.dependencies import GatewayDep
from gateway.rest.models import render_model
from gateway.rest.schemas import ModelList, ModelObject

EXAMPLE = {
    "id": "gpt-image-2",
    "object": "model",
    "created": 1776729600,
    "owned_by": "openai",
    "shutdown_date": None,
    "successor": None,
    "served_model": "gpt-image-2",
    "fallbacks": ["gemini-nano-banana-2.1"],
    "ready": None,
    "price": {
        "unit": "token",
        "text_input_usd": "5.00",
        "image_input_usd": "8.00",
        "text_output_usd": "0.00",
        "image_output_usd": "30.00",
        "per_image_usd": None,
        "by_size_usd": None,
        "per_second_usd": None,
    },
    "capabilities": {
        "endpoints": ["edits", "generations"],
        "parameters": ["background", "output_format", "quality", "size"],
        "sizes": {"fixed": ["1024x1024", "auto"]},
        "qualities": ["low", "medium", "high", "auto"],
        "output_formats": ["png", "jpeg", "webp"],
        "backgrounds": ["opaque", "auto"],
        "max_images": 10,
        "max_input_images": 16,
        "max_prompt_characters": 32000,
    },
}

router = APIRouter(prefix="/models", tags=["admin: models"])


def _answers(model: type[BaseModel], example: object) -> dict[int | str, dict[str, Any]]:
    """Describe an answer of a model's fields, with an example."""
    return {200: {"model": model, "content": {"application/json": {"example": example}}}}


@router.get(
    "",
    summary="List all models",
    response_model=None,
    responses=_answers(ModelList, {"object": "list", "data": [EXAMPLE]}),
    dependencies=[NoQuery],
)
async def list_models(gateway: GatewayDep) -> dict[str, object]:
    """List the catalogue with the operator's own models, retired ones included.

    Prices, dates, readiness and the model that serves are those of live calls.
    """
    data = await _shown(gateway, list(gateway.core.catalog.models.values()))
    return {"object": "list", "data": data}


@router.get(
    "/{model_id}",
    summary="Show a model",
    response_model=None,
    responses=_answers(ModelObject, EXAMPLE),
    dependencies=[NoQuery],
)
async def get_model(model_id: str, gateway: GatewayDep) -> dict[str, object]:
    """Return one model of the catalogue."""
    model = gateway.core.catalog.models.get(model_id)
    if model is None:
        raise unknown_model(model_id)
    [shown] = await _shown(gateway, [model])
    return shown


async def _shown(gateway: Gateway, models: Sequence[Model]) -> list[dict[str, object]]:
    catalog = gateway.core.catalog
    ready = await gateway.hosts.readiness(models)
    shown = []
    for model in models:
        try:
            serving = catalog.serving(model, livemode=True)
        except ModelRetired:  # its successors lead to one another: no call is made
            serving = model
        price = await gateway.pipeline.price_list(serving)
        shown.append(
            render_model(
                model,
                serving,
                catalog.fallbacks(model.id),
                price=price,
                is_ready=ready.get(model.id),
            )
        )
    return shown
