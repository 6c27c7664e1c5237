"""Model cards: a model's capabilities, lifetime and cost."""

from dataclasses import asdict

from pydantic import BaseModel, Field

from gateway.billing.price_lists import PriceList
from gateway.bootstrap import Gateway
from gateway.domain import Caller, Operation, Quote
from gateway.errors import InvalidRequest, NotConfigured
from gateway.generation.parameters import ENDPOINTS, parse_image_request
from gateway.image_models import Model
from gateway.money import format_usd_short

SAMPLE_SIZE = "1024x1024"


class ModelCard(BaseModel):
    """One model."""

    id: str
    is_default: bool
    served_by: str = Field(description="The model that makes the images; a successor if retired.")
    operations: list[str]
    sizes: str
    qualities: list[str]
    output_formats: list[str]
    backgrounds: list[str]
    max_images: int
    max_input_images: int
    max_prompt_characters: int
    streams: bool = Field(description="True if partial_images can be requested.")
    shutdown_date: str | None
    successor: str | None
    price: dict[str, str | dict[str, str]] | None = Field(
        description="unit, and US dollars as decimal strings: per million tokens, image or second."
    )
    sample_size: str
    max_cost_usd: dict[str, str] = Field(
        description="Maximum cost of one image of sample_size, by quality; a fallback included."
    )


async def model_card(gateway: Gateway, caller: Caller, model: Model) -> ModelCard:
    """Build the card of a model that the caller may use."""
    serving = gateway.core.catalog.serving(model, livemode=caller.livemode)
    fixed = model.sizes.fixed
    size = SAMPLE_SIZE if not fixed or SAMPLE_SIZE in fixed else fixed[-1]
    if model.wording is not None:
        size = model.wording.default_size
    quotes = {
        quality: quote
        for quality in [name for name in model.qualities if name != "auto"] or ["auto"]
        if (quote := await _sample(gateway, caller, model, size, quality))
    }
    return ModelCard(
        id=model.id,
        is_default=model.id == gateway.settings.default_model,
        served_by=serving.id,
        operations=[
            operation.value for operation in Operation if ENDPOINTS[operation] in model.endpoints
        ],
        sizes=_sizes(model),
        qualities=list(model.qualities),
        output_formats=list(model.output_formats),
        backgrounds=list(model.backgrounds),
        max_images=model.max_images,
        max_input_images=model.inputs.max_images,
        max_prompt_characters=model.max_prompt_characters,
        streams="partial_images" in model.parameters,
        shutdown_date=None if model.shutdown_date is None else model.shutdown_date.isoformat(),
        successor=model.successor,
        price=_price(await gateway.pipeline.price_list(serving)),
        sample_size=size,
        max_cost_usd={
            quality: format_usd_short(quote.amount_nano) for quality, quote in quotes.items()
        },
    )


async def _sample(
    gateway: Gateway, caller: Caller, model: Model, size: str, quality: str
) -> Quote | None:
    """Quote one image with the dearest that may serve it; None: none from text, or no price."""
    try:
        request = parse_image_request(
            {"model": model.id, "prompt": "-", "size": size, "quality": quality},
            caller,
            gateway.core.catalog,
            default_model=model.id,
        )
        _, quote = await gateway.pipeline.quote_most(caller, request)
        return quote
    except (InvalidRequest, NotConfigured):
        return None


def _price(found: PriceList | None) -> dict[str, str | dict[str, str]] | None:
    """Render the prices of the model's unit alone: a schema of them all is long for an agent."""
    if found is None:
        return None
    return {name: value for name, value in asdict(found).items() if value is not None}


def _sizes(model: Model) -> str:
    rule = model.sizes
    auto = ["auto"] if rule.auto else []
    if rule.fixed:
        return ", ".join((*rule.fixed, *auto))
    bounds = f"edges from {rule.min_edge} to {rule.max_edge}"
    if not rule.min_edge:
        bounds = (
            f"{rule.min_pixels} to {rule.max_pixels} pixels, edges up to {rule.max_edge}, "
            f"at most {rule.max_ratio}:1"
        )
    return f"WIDTHxHEIGHT, both divisible by {rule.multiple_of}, {bounds}" + "".join(
        f", or {name}" for name in auto
    )
