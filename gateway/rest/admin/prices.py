"""Price versions: list and add. They are immutable."""

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Depends
from fastapi import Query as InQuery
from pydantic import Field, model_validator

from gateway.billing import prices
from gateway.domain import Price
from gateway.image_models import SeedPrice, Unit
from gateway.money import format_usd_short, parse_usd
from gateway.rest.admin.dependencies import JsonBody, NoQuery, body_of
from gateway.rest.admin.schemas import (
    Body,
    Identified,
    Instant,
    Listed,
    NumberedPageQuery,
    Usd,
    with_example,
)
from gateway.rest.dependencies import ActorDep, GatewayDep
from gateway.rest.refusals import refused_with

router = APIRouter(prefix="/prices", tags=["admin: prices"])
MODEL = r"^[!-~]{1,100}$"


class PriceObject(Identified):
    """One version: US dollars per million tokens, image or second, as decimal strings."""

    model_config = with_example(
        id="31",
        object="price",
        model="gpt-image-2",
        effective_from="2026-12-01T00:00:00Z",
        text_input="5.00",
        image_input="8.00",
        image_output="28.00",
        text_output="28.00",
        per_image="0.00",
        per_second="0.00",
    )

    id: str
    object: Literal["price"] = "price"
    model: str
    effective_from: datetime
    text_input: str
    image_input: str
    image_output: str
    text_output: str
    per_image: str
    per_second: str


class PriceBody(Body):
    """A version to add: the rates of tokens, or the price of an image."""

    model_config = with_example(
        model="gpt-image-2",
        effective_from="2026-12-01T00:00:00Z",
        text_input="5",
        image_input="8",
        image_output="28",
    )

    model: str = Field(pattern=MODEL, description="Name as in the list, e.g. `dall-e-2/512x512`.")
    effective_from: Instant | None = Field(None, description="Default: now.")
    text_input: Usd | None = Field(None, description="Per million text input tokens.")
    image_input: Usd | None = Field(None, description="Per million image input tokens.")
    image_output: Usd | None = Field(None, description="Per million image output tokens.")
    text_output: Usd | None = Field(
        None, description="Per million text output tokens. Default: same as `image_output`."
    )
    per_image: Usd | None = Field(None, description="Per image, instead of token rates.")

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        needed = (self.text_input, self.image_input, self.image_output)
        if self.per_image is not None:
            if any(rate is not None for rate in (*needed, self.text_output)):
                raise ValueError("per_image excludes token rates; remove one of them")
        elif any(rate is None for rate in needed):
            raise ValueError("text_input, image_input and image_output are required, or per_image")
        return self

    @property
    def unit(self) -> Unit:
        """The unit that the rates are of."""
        return Unit.TOKEN if self.per_image is None else Unit.IMAGE

    def rates(self) -> SeedPrice:
        """The rates in nano-USD."""
        text_output = self.image_output if self.text_output is None else self.text_output
        return SeedPrice(
            text_input_nano=parse_usd(self.text_input or "0"),
            image_input_nano=parse_usd(self.image_input or "0"),
            image_output_nano=parse_usd(self.image_output or "0"),
            text_output_nano=parse_usd(text_output or "0"),
            per_image_nano=parse_usd(self.per_image or "0"),
        )


class PricesQuery(NumberedPageQuery):
    """Filters of the price list."""

    model: str | None = Field(None, pattern=MODEL, description="Only prices of this model.")


@router.get("", summary="List price versions")
async def list_prices(
    gateway: GatewayDep, query: Annotated[PricesQuery, InQuery()]
) -> Listed[PriceObject]:
    """List price versions, latest addition first. For each model, the version with the latest start
    in the past applies; calls are settled with the version that they were reserved with.
    """
    async with gateway.operators_database.operator() as session:
        page = await prices.list_page(
            session, limit=query.limit, after=query.after, model=query.model
        )
    data = [_render(price) for price in page.items]
    return Listed[PriceObject].of(data, has_more=page.has_more)


@router.post(
    "",
    summary="Add a price version",
    status_code=201,
    responses=refused_with(404, 409),
    dependencies=[NoQuery],
    openapi_extra=body_of(PriceBody),
)
async def add_price(
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[PriceBody, Depends(JsonBody(PriceBody))],
) -> PriceObject:
    """Add a price version: rates of tokens, or `per_image` for a price by size. Calls after its
    start are quoted with it. It cannot be edited or removed; a further version with a later start
    replaces it.
    """
    prices.check(body.model, body.unit, gateway.core.catalog.models)
    async with gateway.operators_database.operator(by=actor) as session:
        added = await prices.add(
            session,
            body.model,
            body.rates(),
            effective_from=body.effective_from or datetime.now(UTC),
        )
    gateway.clear_caches(prices.CACHE_TAG)
    return _render(added)


def _render(price: Price) -> PriceObject:
    return PriceObject(
        id=str(price.id),
        model=price.model,
        effective_from=price.effective_from,
        text_input=format_usd_short(price.text_input_nano),
        image_input=format_usd_short(price.image_input_nano),
        image_output=format_usd_short(price.image_output_nano),
        text_output=format_usd_short(price.text_output_nano),
        per_image=format_usd_short(price.per_image_nano),
        per_second=format_usd_short(price.per_second_nano),
    )
