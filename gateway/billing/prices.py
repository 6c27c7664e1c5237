"""Price versions: a row is never edited, a change is a new row with its own start."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from gateway.db.cache import Cache
from gateway.db.engine import Database, OperatorSession
from gateway.db.tables import PriceRow
from gateway.domain import Model, Price, SeedPrice
from gateway.errors import InvalidRequest, NotConfigured

SEED_EFFECTIVE_FROM = datetime(2020, 1, 1, tzinfo=UTC)
MAX_RATE_NANO = 10_000 * 1_000_000_000
"""Ten thousand dollars per million tokens: what is above is a mistake of units."""


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Every version of every model's price."""

    versions: Mapping[str, tuple[Price, ...]]

    def at(self, model: str, moment: datetime) -> Price | None:
        """The version in force, or None where the model has no price."""
        started = [v for v in self.versions.get(model, ()) if v.effective_from <= moment]
        return max(started, key=lambda version: version.effective_from, default=None)


class Prices:
    """The prices in force, kept until a new version is announced."""

    def __init__(self, database: Database, tables: Cache[str, PriceTable]) -> None:
        self._database = database
        self._tables = tables

    async def current(self, model: str) -> Price:
        """The price of a model now.

        Raises:
            NotConfigured: it has none; nothing is sold without a price (code `price_unknown`).
        """
        table = await self._tables.get("prices", self._load)
        price = table.at(model, datetime.now(UTC)) if table is not None else None
        if price is None:
            raise NotConfigured(
                f"Model {model} has no price here, so no call to it can be budgeted. "
                "The operator adds one with `gateway prices add`.",
                code="price_unknown",
            )
        return price

    async def _load(self) -> tuple[PriceTable, str]:
        async with self._database.operator() as session:
            return PriceTable(_by_model(await list_prices(session))), "price"


def _by_model(prices: Iterable[Price]) -> dict[str, tuple[Price, ...]]:
    grouped: dict[str, tuple[Price, ...]] = {}
    for price in prices:
        grouped[price.model] = (*grouped.get(price.model, ()), price)
    return grouped


async def list_prices(session: OperatorSession) -> list[Price]:
    """Every version, by model and start."""
    rows = await session.scalars(select(PriceRow).order_by(PriceRow.model, PriceRow.effective_from))
    return [_price(row) for row in rows]


async def add(
    session: OperatorSession, model: str, rates: SeedPrice, *, effective_from: datetime
) -> Price:
    """Add a version.

    Raises:
        InvalidRequest: a rate out of bounds, or a version with this start exists.
    """
    _check(rates)
    made = await session.execute(
        insert(PriceRow)
        .values(
            model=model,
            effective_from=effective_from,
            text_input_nano=rates.text_input_nano,
            image_input_nano=rates.image_input_nano,
            image_output_nano=rates.image_output_nano,
            text_output_nano=rates.text_output_nano,
            per_image_nano=rates.per_image_nano,
        )
        .on_conflict_do_nothing(index_elements=[PriceRow.model, PriceRow.effective_from])
        .returning(PriceRow)
    )
    row = made.scalar_one_or_none()
    if row is None:
        raise InvalidRequest(
            f"{model} has a price from {effective_from.isoformat()} already, and prices are never "
            "edited. Choose another start.",
            param="effective_from",
        )
    return _price(row)


async def seed(session: OperatorSession, models: Iterable[Model]) -> int:
    """Give every model of the catalogue its list price where it has none; returns how many."""
    priced = set(await session.scalars(select(PriceRow.model).distinct()))
    missing = {name: price for name, price in list_prices_of(models).items() if name not in priced}
    for name, price in missing.items():
        await add(session, name, price, effective_from=SEED_EFFECTIVE_FROM)
    return len(missing)


def list_prices_of(models: Iterable[Model]) -> dict[str, SeedPrice]:
    """The catalogue's list prices by name: a model's, or `model/quality/size` for each image."""
    named: dict[str, SeedPrice] = {}
    for model in models:
        if model.id == model.priced_as:
            named |= {f"{model.id}/{name}": price for name, price in model.per_image.items()}
            if model.price is not None:
                named[model.id] = model.price
    return named


def _check(rates: SeedPrice) -> None:
    named = {
        "text_input": rates.text_input_nano,
        "image_input": rates.image_input_nano,
        "image_output": rates.image_output_nano,
        "text_output": rates.text_output_nano,
        "per_image": rates.per_image_nano,
    }
    for name, rate in named.items():
        if not 0 <= rate <= MAX_RATE_NANO:
            raise InvalidRequest(f"{name} must lie between 0 and 10000 US dollars.", param=name)


def _price(row: PriceRow) -> Price:
    return Price(
        row.id,
        row.model,
        row.effective_from,
        row.text_input_nano,
        row.image_input_nano,
        row.image_output_nano,
        row.text_output_nano,
        row.per_image_nano,
    )
