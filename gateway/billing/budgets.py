"""Budgets: money limits of tenants, users and keys, per window of the tenant's own calendar."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Row, func, select, text

from gateway.db.audit import Action, record
from gateway.db.engine import TenantSession, one_at_a_time
from gateway.db.money_tables import BudgetRow
from gateway.db.owners import find_owner
from gateway.db.pages import Page, page_of
from gateway.domain import Caller
from gateway.errors import InvalidRequest, NotFound
from gateway.money import MAX_AMOUNT_NANO, NanoUsd, format_usd_short

Window = Literal["day", "week", "month", "total"]
WINDOWS: tuple[Window, ...] = ("day", "week", "month", "total")
MAX_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget and how far it is used in its current period. Amounts in nano-USD.

    `is_new`: it was made just now.
    """

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
    is_new: bool = False

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
        NotFound: the key or the user is not this tenant's.
    """
    if window not in WINDOWS:
        raise InvalidRequest(f"A window is one of {', '.join(WINDOWS)}.", param="window")
    if not 0 <= limit_nano <= MAX_AMOUNT_NANO:
        raise InvalidRequest("A limit lies between 0 and 1000000000 USD.", param="limit_usd")
    await one_at_a_time(session, tenant_id)
    owner = await find_owner(
        session, tenant_id, livemode=livemode, api_key_id=api_key_id, user_id=user_id
    )
    row = await session.scalar(
        select(BudgetRow).where(
            BudgetRow.tenant_id == tenant_id,
            BudgetRow.api_key_id.is_not_distinct_from(owner.api_key_id),
            BudgetRow.user_id.is_not_distinct_from(owner.user_id),
            BudgetRow.livemode.is_(owner.livemode),
            BudgetRow.period == window,
        )
    )
    before = None if row is None or row.removed_at is not None else _shown(row)
    if row is None:
        row = BudgetRow(
            tenant_id=tenant_id,
            api_key_id=owner.api_key_id,
            user_id=owner.user_id,
            livemode=owner.livemode,
            period=window,
        )
    row.limit_nano, row.removed_at, row.updated_at = limit_nano, None, func.now()
    session.add(row)
    await session.flush()
    await record(
        session,
        Action.BUDGET_CREATED if before is None else Action.BUDGET_UPDATED,
        tenant_id=tenant_id,
        object_id=row.id,
        before=before,
        after=_shown(row),
    )
    found = await session.execute(_ONE, {"tenant_id": tenant_id, "id": row.id})
    return replace(_budget(found.one()), is_new=before is None)


async def remove(session: TenantSession, tenant_id: UUID, budget_id: int) -> None:
    """Lift a limit; what was spent stays on record, and counts again if it is set anew.

    Raises:
        NotFound: the tenant has no such budget.
    """
    await one_at_a_time(session, tenant_id)
    row = await session.scalar(
        select(BudgetRow).where(
            BudgetRow.tenant_id == tenant_id,
            BudgetRow.id == budget_id,
            BudgetRow.removed_at.is_(None),
        )
    )
    if row is None:
        raise NotFound(f"This tenant has no budget {budget_id}.", param="budget_id")
    before = _shown(row)
    # Calls that are under way settle in its periods, so the row must stay. It binds nobody now.
    row.limit_nano, row.removed_at, row.updated_at = MAX_AMOUNT_NANO, func.now(), func.now()
    await session.flush()
    await record(
        session,
        Action.BUDGET_REMOVED,
        tenant_id=tenant_id,
        object_id=budget_id,
        before=before,
    )


_SELECT = """
    SELECT b.id, b.api_key_id, b.user_id, b.livemode, b.period, b.limit_nano,
        coalesce(bp.spent_nano, 0) AS spent_nano, coalesce(bp.held_nano, 0) AS held_nano,
        nullif(coalesce(bp.period_start, p.starts_at), '-infinity') AS period_start,
        nullif(coalesce(bp.period_end, p.ends_at), 'infinity') AS resets_at
    FROM budget b
    JOIN tenant t ON t.id = b.tenant_id
    CROSS JOIN LATERAL period_bounds(b.period, clock_timestamp(), t.time_zone) p
    LEFT JOIN budget_period bp ON bp.budget_id = b.id
        AND bp.period_start <= clock_timestamp() AND clock_timestamp() < bp.period_end
    WHERE b.tenant_id = :tenant_id AND b.removed_at IS NULL
"""
_ALL = text(
    _SELECT + "ORDER BY b.livemode DESC, b.api_key_id NULLS FIRST, b.user_id NULLS FIRST, b.id"
)
_ONE = text(_SELECT + "AND b.id = :id")
_PAGE = text(_SELECT + "AND b.id < :below ORDER BY b.id DESC LIMIT :limit")


async def list_budgets(session: TenantSession, tenant_id: UUID) -> list[Budget]:
    """Every budget of the tenant with its current period."""
    return [_budget(row) for row in await session.execute(_ALL, {"tenant_id": tenant_id})]


async def list_page(
    session: TenantSession, tenant_id: UUID, *, limit: int, after: int | None = None
) -> Page[Budget]:
    """Budgets of the tenant, newest first, from the one behind `after` on."""
    rows = await session.execute(
        _PAGE,
        {
            "tenant_id": tenant_id,
            "below": MAX_ID if after is None else after,
            "limit": limit + 1,
        },
    )
    return page_of([_budget(row) for row in rows], limit)


def _budget(row: Row[Any]) -> Budget:
    return Budget(
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


def _shown(row: BudgetRow) -> dict[str, object]:
    """What the audit trail says of a budget."""
    return {
        "api_key_id": row.api_key_id,
        "user_id": row.user_id,
        "livemode": row.livemode,
        "window": row.period,
        "limit_usd": format_usd_short(row.limit_nano),
    }


async def for_caller(session: TenantSession, caller: Caller) -> list[Budget]:
    """The budgets that a call of this caller would be held against."""
    return [
        budget
        for budget in await list_budgets(session, caller.tenant_id)
        if budget.livemode == caller.livemode
        and budget.api_key_id in {None, caller.api_key_id}
        and budget.user_id in {None, caller.user_id}
    ]
