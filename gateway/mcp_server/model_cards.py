"""Model cards: a model's capabilities, lifetime and cost."""

from pydantic import BaseModel, Field

from gateway.bootstrap import Gateway
from gateway.domain import Caller, Operation, Price, Quote
from gateway.errors import InvalidRequest, NotConfigured
from gateway.generation.parameters import ENDPOINTS, parse_image_request
from gateway.image_models import Model
from gateway.money import format_usd_short

SAMPLE_SIZE = "1024x1024"


class ModelPrice(BaseModel):
    """List price: US dollars per million tokens, per image or per second. Decimal strings."""

    text_input_usd: str
    image_input_usd: str
    image_output_usd: str
    per_image_usd: str | None
    per_second_usd: str | None


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
    price: ModelPrice | None
    sample_size: str
    max_cost_usd: dict[str, str] = Field(
        description="Maximum cost of one image of sample_size, by quality."
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
        price=_price(next(iter(quotes.values())).price) if quotes else None,
        sample_size=size,
        max_cost_usd={
            quality: format_usd_short(quote.amount_nano) for quality, quote in quotes.items()
        },
    )


async def _sample(
    gateway: Gateway, caller: Caller, model: Model, size: str, quality: str
) -> Quote | None:
    """Quote one image; None if the model makes none from text, or has no price."""
    try:
        request = parse_image_request(
            {"model": model.id, "prompt": "-", "size": size, "quality": quality},
            caller,
            gateway.core.catalog,
            default_model=model.id,
        )
        return await gateway.pipeline.quote(gateway.pipeline.serve(caller, request))
    except (InvalidRequest, NotConfigured):
        return None


def _price(price: Price) -> ModelPrice:
    per_image = format_usd_short(price.per_image_nano) if price.per_image_nano else None
    per_second = format_usd_short(price.per_second_nano) if price.per_second_nano else None
    return ModelPrice(
        text_input_usd=format_usd_short(price.text_input_nano),
        image_input_usd=format_usd_short(price.image_input_nano),
        image_output_usd=format_usd_short(price.image_output_nano),
        per_image_usd=per_image,
        per_second_usd=per_second,
    )


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
