"""The prices of a model that are in force, for the lists that tenants read."""

from dataclasses import dataclass
from typing import Literal

from gateway.billing.prices import Prices
from gateway.billing.quotes import unit_of
from gateway.domain import Price
from gateway.errors import NotConfigured
from gateway.image_models import Model, Unit
from gateway.money import format_usd_short


@dataclass(frozen=True, slots=True)
class PriceList:
    """US dollars as exact decimal strings: per million tokens, per image, or per second of a call.

    Only those of `unit` are set. `by_size`: prices of an image by size, or by quality and size.
    """

    unit: Literal["token", "image", "second"]
    text_input_usd: str | None = None
    image_input_usd: str | None = None
    text_output_usd: str | None = None
    image_output_usd: str | None = None
    per_image_usd: str | None = None
    by_size_usd: dict[str, str] | None = None
    per_second_usd: str | None = None


async def price_list(prices: Prices, model: Model) -> PriceList | None:
    """List what a model costs now; None if a price is missing, so that it cannot be called.

    Raises:
        DatabaseUnavailable: Postgres is away, and no prices are cached.
    """
    try:
        if model.per_image:
            found = {
                name: format_usd_short(
                    (await prices.current(f"{model.priced_as}/{name}")).per_image_nano
                )
                for name in model.per_image
            }
            return PriceList("image", by_size_usd=found)
        price = await prices.current(model.priced_as)
        return _of_unit(unit_of(model, price), price)
    except NotConfigured:
        return None


def _of_unit(unit: Unit, price: Price) -> PriceList:
    if unit is Unit.IMAGE:
        return PriceList("image", per_image_usd=format_usd_short(price.per_image_nano))
    if unit is Unit.SECOND:
        return PriceList("second", per_second_usd=format_usd_short(price.per_second_nano))
    return PriceList(
        "token",
        text_input_usd=format_usd_short(price.text_input_nano),
        image_input_usd=format_usd_short(price.image_input_nano),
        text_output_usd=format_usd_short(price.text_output_nano),
        image_output_usd=format_usd_short(price.image_output_nano),
    )
