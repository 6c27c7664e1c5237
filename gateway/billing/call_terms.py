"""The terms of one call: the price, the parameters of its quote, and the budgets that held it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import select, text

from gateway.billing.prices import get_price
from gateway.db.engine import OperatorSession
from gateway.db.money_tables import ReservationRow
from gateway.domain import CostFactors, Price
from gateway.errors import NotFound


@dataclass(frozen=True, slots=True)
class CallHold:
    """A budget period in which a call counts, with its use by now. Amounts in nano-USD.

    `is_removed`: the budget was removed since.
    """

    budget_id: int
    owner: Literal["house", "tenant", "user", "key"]
    owner_name: str | None
    window: str
    period_start: datetime | None
    period_end: datetime | None
    limit_nano: int
    spent_nano: int
    held_nano: int
    is_removed: bool


@dataclass(frozen=True, slots=True)
class CallTerms:
    """The terms of a call. `factors` is None for calls of early releases."""

    price: Price
    factors: CostFactors | None
    served_quality: str | None
    served_size: str | None
    holds: tuple[CallHold, ...]


_HOLDS = text("""
    SELECT b.id, CASE WHEN b.api_key_id IS NOT NULL THEN 'key' WHEN b.user_id IS NOT NULL
            THEN 'user' ELSE 'tenant' END AS owner, coalesce(k.name, u.name) AS owner_name,
        b.period AS window_name, nullif(p.period_start, '-infinity') AS period_start,
        nullif(p.period_end, 'infinity') AS period_end, p.ceiling_nano AS limit_nano,
        p.spent_nano, p.held_nano, b.removed_at IS NOT NULL AS is_removed
    FROM budget_period p
    JOIN budget b ON b.tenant_id = p.tenant_id AND b.id = p.budget_id
    LEFT JOIN api_key k ON k.tenant_id = b.tenant_id AND k.id = b.api_key_id
    LEFT JOIN tenant_user u ON u.tenant_id = b.tenant_id AND u.id = b.user_id
    WHERE p.tenant_id = :tenant_id AND p.id = ANY(CAST(:periods AS bigint[]))
    UNION ALL
    SELECT b.id, 'house', NULL, b.period, nullif(min(o.period_start), '-infinity'),
        nullif(min(o.period_end), 'infinity'),
        max(o.ceiling_nano), sum(o.spent_nano)::bigint, sum(o.held_nano)::bigint,
        b.removed_at IS NOT NULL
    FROM house_budget_period p
    JOIN house_budget b ON b.id = p.budget_id
    JOIN house_budget_period o ON o.budget_id = p.budget_id AND o.period_start = p.period_start
    WHERE p.shard = :shard AND p.id = ANY(CAST(:house_periods AS bigint[]))
    GROUP BY b.id
    ORDER BY 2, 4, 1
""")


async def read_terms(session: OperatorSession, tenant_id: UUID, call_id: UUID) -> CallTerms:
    """Read the terms of a call, and the budgets in which it counts.

    Raises:
        NotFound: there is no such call.
    """
    row = await session.scalar(
        select(ReservationRow).where(
            ReservationRow.tenant_id == tenant_id, ReservationRow.id == call_id
        )
    )
    if row is None:
        raise NotFound(f"There is no call {call_id}.", param="id")
    found = await session.execute(
        _HOLDS,
        {
            "tenant_id": tenant_id,
            "periods": row.periods,
            "shard": row.house_shard or 0,
            "house_periods": row.house_periods or [],
        },
    )
    return CallTerms(
        price=await get_price(session, row.price_id),
        factors=None if row.terms is None else CostFactors(**row.terms),
        served_quality=row.served_quality,
        served_size=row.served_size,
        holds=tuple(
            CallHold(
                budget_id=hold.id,
                owner=hold.owner,
                owner_name=hold.owner_name,
                window=hold.window_name,
                period_start=hold.period_start,
                period_end=hold.period_end,
                limit_nano=hold.limit_nano,
                spent_nano=hold.spent_nano,
                held_nano=hold.held_nano,
                is_removed=hold.is_removed,
            )
            for hold in found
        ),
    )
