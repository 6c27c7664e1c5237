"""Budgets: money limits of tenants, users and keys, per window of the tenant's own calendar."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert

from gateway.db.engine import TenantSession
from gateway.db.tables import ApiKeyRow, BudgetRow
from gateway.domain import Caller
from gateway.errors import InvalidRequest, NotFound
from gateway.money import MAX_AMOUNT_NANO, NanoUsd

Window = Literal["day", "week", "month", "total"]
WINDOWS: tuple[Window, ...] = ("day", "week", "month", "total")


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget and how far it is used in its current period. Amounts in nano-USD."""

    id: int
    owner: Literal["tenant", "user", "key"]
    api_key_id: UUID | None
    user_id: UUID | None
    livemode: bool
    window: Window
    limit_nano: int
    spent_nano: int
    held_nano: int
    period_start: datetime | None
    resets_at: datetime | None

    @property
    def remaining_nano(self) -> int:
        """What can still be held."""
        return max(0, self.limit_nano - self.spent_nano - self.held_nano)


async def set_limit(
    session: TenantSession,
    tenant_id: UUID,
    *,
    window: str,
    limit_nano: NanoUsd,
    livemode: bool = True,
    api_key_id: UUID | None = None,
    user_id: UUID | None = None,
) -> Budget:
    """Make a budget, or change its limit; the next hold sees it.

    Raises:
        InvalidRequest: unknown window, limit out of bounds, or two owners at once.
        NotFound: the key is not this tenant's.
    """
    if window not in WINDOWS:
        raise InvalidRequest(f"A window is one of {', '.join(WINDOWS)}.", param="window")
    if not 0 <= limit_nano <= MAX_AMOUNT_NANO:
        raise InvalidRequest("A limit lies between 0 and 1000000000 USD.", param="limit")
    if api_key_id is not None and user_id is not None:
        raise InvalidRequest("A budget belongs to a key or to a user, not to both.", param="user")
    if api_key_id is not None:
        key = await session.scalar(
            select(ApiKeyRow).where(ApiKeyRow.tenant_id == tenant_id, ApiKeyRow.id == api_key_id)
        )
        if key is None:
            raise NotFound(f"This tenant has no API key {api_key_id}.", param="key")
        # Of a rolled key the whole line is limited, and only calls of the key's own mode exist.
        api_key_id, livemode = key.root_id, key.livemode
    made = await session.execute(
        insert(BudgetRow)
        .values(
            tenant_id=tenant_id,
            api_key_id=api_key_id,
            user_id=user_id,
            livemode=livemode,
            period=window,
            limit_nano=limit_nano,
        )
        .on_conflict_do_update(
            constraint="budget_owner",
            set_={"limit_nano": limit_nano, "updated_at": text("now()")},
        )
        .returning(BudgetRow.id)
    )
    budget_id = made.scalar_one()
    return next(b for b in await list_budgets(session, tenant_id) if b.id == budget_id)


_CURRENT = text(
    """
    SELECT b.id, b.api_key_id, b.user_id, b.livemode, b.period, b.limit_nano,
        coalesce(bp.spent_nano, 0) AS spent_nano, coalesce(bp.held_nano, 0) AS held_nano,
        nullif(coalesce(bp.period_start, p.starts_at), '-infinity') AS period_start,
        nullif(coalesce(bp.period_end, p.ends_at), 'infinity') AS resets_at
    FROM budget b
    JOIN tenant t ON t.id = b.tenant_id
    CROSS JOIN LATERAL period_bounds(b.period, clock_timestamp(), t.time_zone) p
    LEFT JOIN budget_period bp ON bp.budget_id = b.id
        AND bp.period_start <= clock_timestamp() AND clock_timestamp() < bp.period_end
    WHERE b.tenant_id = :tenant_id
    ORDER BY b.livemode DESC, b.api_key_id NULLS FIRST, b.user_id NULLS FIRST, b.id
    """
)


async def list_budgets(session: TenantSession, tenant_id: UUID) -> list[Budget]:
    """Every budget of the tenant with its current period."""
    rows = await session.execute(_CURRENT, {"tenant_id": tenant_id})
    return [
        Budget(
            id=row.id,
            owner="key" if row.api_key_id else "user" if row.user_id else "tenant",
            api_key_id=row.api_key_id,
            user_id=row.user_id,
            livemode=row.livemode,
            window=row.period,
            limit_nano=row.limit_nano,
            spent_nano=row.spent_nano,
            held_nano=row.held_nano,
            period_start=row.period_start,
            resets_at=row.resets_at,
        )
        for row in rows
    ]


async def for_caller(session: TenantSession, caller: Caller) -> list[Budget]:
    """The budgets that a call of this caller would be held against."""
    return [
        budget
        for budget in await list_budgets(session, caller.tenant_id)
        if budget.livemode == caller.livemode
        and budget.api_key_id in {None, caller.api_key_id}
        and budget.user_id in {None, caller.user_id}
    ]
