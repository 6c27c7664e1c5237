"""Price versions: rows are immutable; a change is a new row with its own start."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from gateway.catalog.declared import DeclaredPrice
from gateway.db.audit import Action, record
from gateway.db.cache import Cache
from gateway.db.engine import Database, OperatorSession
from gateway.db.money_tables import PriceRow
from gateway.db.pages import Page, page_of
from gateway.domain import Price
from gateway.errors import Conflict, InvalidRequest, NotConfigured, NotFound
from gateway.image_models import Model, SeedPrice, Unit
from gateway.money import format_usd_short

SEED_EFFECTIVE_FROM = datetime(2020, 1, 1, tzinfo=UTC)
CACHE_TAG = "price"
"""The Postgres notification sent when a version is added."""
START_BEFORE = datetime(2100, 1, 1, tzinfo=UTC)
MAX_RATE_NANO = 10_000 * 1_000_000_000
"""Ten thousand dollars per million tokens: a higher rate is a mistake of units."""
log = logging.getLogger(__name__)
"""The standard library's: commands that read start faster without structlog."""


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Every version of every model's price."""

    versions: Mapping[str, tuple[Price, ...]]

    def at(self, model: str, moment: datetime) -> Price | None:
        """Return the version in force, or None if the model has no price."""
        started = [v for v in self.versions.get(model, ()) if v.effective_from <= moment]
        return max(started, key=lambda version: version.effective_from, default=None)


class Prices:
    """A cache of the prices in force, refreshed when a new version is announced."""

    def __init__(self, database: Database, tables: Cache[str, PriceTable]) -> None:
        self._database = database
        self._tables = tables

    async def load(self) -> None:
        """Load every price before the first request."""
        await self._tables.get("prices", self._load)

    async def current(self, model: str) -> Price:
        """Return the current price of a model.

        Raises:
            NotConfigured: the model has no price, so it cannot be called (code `price_unknown`).
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
            return PriceTable(_by_model(await list_prices(session))), CACHE_TAG


def _by_model(prices: Iterable[Price]) -> dict[str, tuple[Price, ...]]:
    grouped: dict[str, tuple[Price, ...]] = {}
    for price in prices:
        grouped[price.model] = (*grouped.get(price.model, ()), price)
    return grouped


async def list_prices(session: OperatorSession) -> list[Price]:
    """List every version, by model and start."""
    rows = await session.scalars(select(PriceRow).order_by(PriceRow.model, PriceRow.effective_from))
    return [_price(row) for row in rows]


async def list_page(
    session: OperatorSession, *, limit: int, after: int | None = None, model: str | None = None
) -> Page[Price]:
    """List one page of versions, the last added first, after `after`."""
    query = select(PriceRow).order_by(PriceRow.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(PriceRow.id < after)
    if model is not None:
        query = query.where(PriceRow.model == model)
    return page_of([_price(row) for row in await session.scalars(query)], limit)


async def get_price(session: OperatorSession, price_id: int) -> Price:
    """Return one version by its id."""
    return _price(await session.get_one(PriceRow, price_id))


def check(name: str, unit: Unit, models: Mapping[str, Model]) -> None:
    """Refuse a version by this unit that no call could be billed by.

    Raises:
        NotFound: no model has a price of this name.
        InvalidRequest: the model uses the price of another model, or is billed by another unit:
            its own rates would be zero, and its calls free.
    """
    model = models.get(name)
    if model is not None and model.wording is not None:
        raise InvalidRequest(
            f"The price of {name} stands in the models file: change it there.", param="model"
        )
    if model is not None and model.priced_as != name:
        raise InvalidRequest(
            f"{name} uses the price of {model.priced_as}: add a version of that.", param="model"
        )
    if name not in list_prices_of(models.values()):
        raise NotFound(
            f"There is no price {name!r} in the catalogue; the list of prices shows the names.",
            param="model",
        )
    is_by_image = model is None  # its name is that of a model with a quality or size
    if is_by_image and unit is not Unit.IMAGE:
        raise InvalidRequest(f"{name} is priced by the image: give per_image.", param="text_input")
    if not is_by_image and unit is not Unit.TOKEN:
        raise InvalidRequest(
            f"{name} is priced by the token: give text_input, image_input and image_output.",
            param="per_image",
        )


async def add(
    session: OperatorSession, model: str, rates: SeedPrice, *, effective_from: datetime
) -> Price:
    """Add a version.

    Raises:
        InvalidRequest: a rate or the start out of range.
        Conflict: a version with this start exists.
    """
    if not SEED_EFFECTIVE_FROM <= effective_from < START_BEFORE:
        raise InvalidRequest(
            f"effective_from must be from {SEED_EFFECTIVE_FROM:%Y-%m-%d} on and before "
            f"{START_BEFORE:%Y-%m-%d} (got {effective_from:%Y-%m-%d}).",
            param="effective_from",
        )
    price = await _insert(session, model, rates, effective_from=effective_from)
    await record(
        session, Action.PRICE_ADDED, tenant_id=None, object_id=price.id, after=_shown(price)
    )
    return price


async def _insert(
    session: OperatorSession, model: str, rates: SeedPrice, *, effective_from: datetime
) -> Price:
    _check(rates)
    made = await session.execute(
        insert(PriceRow)
        .values(_columns(model, rates, effective_from))
        .on_conflict_do_nothing(index_elements=[PriceRow.model, PriceRow.effective_from])
        .returning(PriceRow)
    )
    row = made.scalar_one_or_none()
    if row is None:
        raise Conflict(
            f"{model} has a price from {effective_from.isoformat()} already, and prices are never "
            "edited. Choose another start.",
            param="effective_from",
        )
    return _price(row)


def _columns(model: str, rates: SeedPrice, effective_from: datetime) -> dict[str, object]:
    return {
        "model": model,
        "effective_from": effective_from,
        "text_input_nano": rates.text_input_nano,
        "image_input_nano": rates.image_input_nano,
        "image_output_nano": rates.image_output_nano,
        "text_output_nano": rates.text_output_nano,
        "per_image_nano": rates.per_image_nano,
        "per_second_nano": rates.per_second_nano,
    }


async def seed(session: OperatorSession, models: Iterable[Model]) -> int:
    """Add the list price of each catalogue model that has no price; return their number."""
    priced = set(await session.scalars(select(PriceRow.model).distinct()))
    missing = {name: price for name, price in list_prices_of(models).items() if name not in priced}
    if missing:
        for rates in missing.values():
            _check(rates)
        await session.execute(
            insert(PriceRow).on_conflict_do_nothing(),  # a gateway that starts beside this one
            [_columns(name, rates, SEED_EFFECTIVE_FROM) for name, rates in missing.items()],
        )
    return len(missing)


async def enforce(session: OperatorSession, declared: Sequence[DeclaredPrice]) -> list[Price]:
    """Add the versions that bring the declared prices into force; return them.

    One without a start applies from now if the price in force differs, unless a dated one of the
    same name has begun. Entries keep the price that they were made with.

    Raises:
        Conflict: another price has that start already.
    """
    table = PriceTable(_by_model(await list_prices(session)))
    now = datetime.now(UTC)
    begun = {one.name for one in declared if one.effective_from and one.effective_from <= now}
    added = []
    for one in declared:
        if one.effective_from is None and one.name in begun:
            log.info("models_file_price_ended: %s", one.name)
            continue
        versions = table.versions.get(one.name, ())
        same = table.at(one.name, now)
        if one.effective_from is not None:
            same = next((v for v in versions if v.effective_from == one.effective_from), None)
        if same is None or (one.effective_from is None and _rates(same) != one.rates):
            start = one.effective_from or now
            added.append(await add(session, one.name, one.rates, effective_from=start))
        elif _rates(same) != one.rates:
            raise Conflict(
                f"{one.name} has another price from {same.effective_from.isoformat()} already, and "
                "prices are never edited. Choose another start."
            )
    return added


def _rates(price: Price) -> SeedPrice:
    return SeedPrice(
        price.text_input_nano,
        price.image_input_nano,
        price.image_output_nano,
        price.text_output_nano,
        price.per_image_nano,
        price.per_second_nano,
    )


def list_prices_of(models: Iterable[Model]) -> dict[str, SeedPrice]:
    """Return the list prices by name: a model, or `model/quality/size` for a price per image."""
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
        "per_second": rates.per_second_nano,
    }
    for name, rate in named.items():
        if not 0 <= rate <= MAX_RATE_NANO:
            raise InvalidRequest(f"{name} must be from 0 to 10000 US dollars.", param=name)


def _shown(price: Price) -> dict[str, object]:
    """Render a version for the audit trail; rates in US dollars."""
    return {
        "model": price.model,
        "effective_from": price.effective_from,
        "text_input": format_usd_short(price.text_input_nano),
        "image_input": format_usd_short(price.image_input_nano),
        "image_output": format_usd_short(price.image_output_nano),
        "text_output": format_usd_short(price.text_output_nano),
        "per_image": format_usd_short(price.per_image_nano),
        "per_second": format_usd_short(price.per_second_nano),
    }


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
        row.per_second_nano,
    )
