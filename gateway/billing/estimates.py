"""Estimates: the cost posted for a call whose outcome stays unknown past its deadline.

The reservation covers the worst case. The estimate is the bound for the request as it was made,
with an unspecified quality or size taken as the one that the model serves most often.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from uuid import UUID

import orjson
from sqlalchemy import ColumnElement, func, literal_column, select, text

from gateway.billing import quotes
from gateway.billing.prices import get_price
from gateway.db.engine import Database, OperatorSession
from gateway.db.money_tables import ReservationRow
from gateway.domain import CostFactors
from gateway.image_models import AutoChoice, Model
from gateway.money import NanoUsd

MIN_CALLS = 10
# Shaped for the index `reservation_served`: at most 1000 of its entries are read, however many
# calls a model has had.
USUAL = text("""
    SELECT count(*) AS calls, mode() WITHIN GROUP (ORDER BY s.served_quality) AS quality,
        mode() WITHIN GROUP (ORDER BY s.served_size) AS size
    FROM (
        SELECT r.served_quality, r.served_size FROM reservation r
        WHERE r.served_model = :model AND r.operation = :operation AND r.livemode = :livemode
            AND r.state = 'posted' AND r.served_quality IS NOT NULL AND r.served_size IS NOT NULL
        ORDER BY r.id DESC LIMIT 1000
    ) s
""")


async def estimate_unknown(
    database: Database, models: Mapping[str, Model], *, after_seconds: int, limit: int
) -> int:
    """Post the flagged estimate of reservations unknown for that long; return their number.

    Sweepers of several workers may select the same ones: a reservation is estimated once.
    """
    async with database.operator() as session:
        rows = await _due(session, timedelta(seconds=after_seconds), limit)
        amounts = await estimates_of(session, models, rows)
    if not amounts:
        return 0
    settlements = [
        {
            "tenant_id": row.tenant_id,
            "id": row.id,
            "kind": "post_est",
            "amount_nano": amounts[row.id],
            "outcome": "estimated",
        }
        for row in rows
    ]
    settled = await database.call(
        "SELECT result FROM settle(CAST(:settlements AS jsonb))",
        {"settlements": orjson.dumps(settlements, default=str).decode()},
    )
    return sum(row.result == "ok" for row in settled)


async def estimates_of(
    session: OperatorSession, models: Mapping[str, Model], rows: Sequence[ReservationRow]
) -> dict[UUID, NanoUsd]:
    """Estimate the cost of each reservation, never above the reserved amount."""
    usual: dict[tuple[str, str, bool], AutoChoice] = {}
    amounts = {}
    for row in rows:
        model = models.get(row.served_model)
        if model is None or row.terms is None:  # gone from the catalogue, or old
            amounts[row.id] = NanoUsd(row.held_nano)
            continue
        kind = (row.served_model, row.operation, row.livemode)
        if kind not in usual:
            usual[kind] = await usual_choice(session, model, row.operation, livemode=row.livemode)
        price = await get_price(session, row.price_id)
        amounts[row.id] = quotes.estimate(
            CostFactors(**row.terms), model, price, usual[kind], at_most=NanoUsd(row.held_nano)
        )
    return amounts


async def usual_choice(
    session: OperatorSession, model: Model, operation: str, *, livemode: bool
) -> AutoChoice:
    """Return the most frequent quality and size of the model's last 1000 settled calls.

    With fewer than ten such calls: the catalogue's default.
    """
    found = await session.execute(
        USUAL, {"model": model.id, "operation": operation, "livemode": livemode}
    )
    row = found.one()
    return model.usual if row.calls < MIN_CALLS else AutoChoice(row.quality, row.size)


async def _due(session: OperatorSession, after: timedelta, limit: int) -> Sequence[ReservationRow]:
    now: ColumnElement[object] = func.clock_timestamp()
    found = await session.scalars(
        select(ReservationRow)
        .where(
            # A literal, because Postgres uses the partial index only with it.
            ReservationRow.state == literal_column("'unknown'"),
            ReservationRow.admitted_at < now - after,
            ReservationRow.deadline_at < now,
        )
        .order_by(ReservationRow.deadline_at)
        .limit(limit)
    )
    return found.all()
