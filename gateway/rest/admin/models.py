"""The catalogue as operators see it: all models, also those that no key may use."""

from collections.abc import Sequence

from fastapi import APIRouter

from gateway.bootstrap import Gateway
from gateway.catalog.loading import unknown_model
from gateway.errors import ModelRetired
from gateway.image_models import Model
from gateway.rest.admin.dependencies import NoQuery
from gateway.rest.dependencies import GatewayDep
from gateway.rest.models import render_model
from gateway.rest.schemas import ModelList, ModelObject

router = APIRouter(prefix="/models", tags=["admin: models"])


@router.get(
    "",
    summary="List all models",
    response_model=None,
    responses={200: {"model": ModelList}},
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
    responses={200: {"model": ModelObject}},
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
