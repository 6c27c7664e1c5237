"""Budgets: money limits of tenants, users, API keys and the operator, per calendar window.

Functions that take `tenant_id` act on the operator's own budgets if it is None.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Row, func, select, text

from gateway.db.audit import Action, record
from gateway.db.engine import OperatorSession, TenantSession, one_at_a_time
from gateway.db.money_tables import BudgetRow, HouseBudgetRow
from gateway.db.owners import OwnerIds, find_owner
from gateway.db.pages import Page, page_of
from gateway.db.time_zones import check_time_zone
from gateway.domain import Caller
from gateway.errors import InvalidRequest, NotFound
from gateway.money import MAX_AMOUNT_NANO, NanoUsd, format_usd_short

Session = TenantSession | OperatorSession
Window = Literal["day", "week", "month", "total"]
WINDOWS: tuple[Window, ...] = ("day", "week", "month", "total")
Enforcement = Literal["hard", "soft"]
ENFORCEMENTS: tuple[Enforcement, ...] = ("hard", "soft")
MAX_ALERTS = 10
MAX_RAISE = timedelta(days=366)
MAX_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget and its use in the current period. Amounts in nano-USD.

    `limit_nano` is the usual limit, `raised_to_nano` the limit in force until `raised_until`; None
    if the limit is not raised. A `soft` budget refuses nothing. `time_zone` is set only for the
    operator's budgets; a tenant's budgets use the tenant's zone. `is_new`: just created.
    """

    id: int
    owner: Literal["house", "tenant", "user", "key"]
    api_key_id: UUID | None
    api_key_name: str | None
    user_id: UUID | None
    user_name: str | None
    livemode: bool
    window: Window
    limit_nano: int
    enforcement: Enforcement
    alert_percents: tuple[int, ...]
    raised_to_nano: int | None
    raised_until: datetime | None
    time_zone: str | None
    spent_nano: int
    held_nano: int
    period_start: datetime | None
    resets_at: datetime | None
    is_new: bool = False

    @property
    def limit_in_force_nano(self) -> int:
        """The raised limit if there is one, else the usual limit."""
        return max(self.limit_nano, self.raised_to_nano or 0)

    @property
    def remaining_nano(self) -> int:
        """The amount that can still be reserved."""
        return max(0, self.limit_in_force_nano - self.spent_nano - self.held_nano)


async def set_limit(
    session: Session,
    tenant_id: UUID | None,
    *,
    window: str,
    limit_nano: NanoUsd,
    livemode: bool = True,
    api_key_id: UUID | None = None,
    user_id: UUID | None = None,
    enforcement: str | None = None,
    alert_percents: Sequence[int] | None = None,
    time_zone: str | None = None,
) -> Budget:
    """Create a budget, or change its limit, from the next reservation on.

    Arguments that are None change nothing. A new budget is hard and warns at 50, 80 and 100 %; an
    operator's budget uses UTC days.

    Raises:
        InvalidRequest: unknown window, enforcement or time zone, amounts or percents out of range,
            or two owners at once.
        NotFound: the key or the user does not belong to this tenant.
    """
    _check(window, limit_nano, enforcement, alert_percents)
    await one_at_a_time(session, tenant_id)
    if tenant_id is None:
        owner = OwnerIds(None, None, livemode=True)
        if time_zone is not None:
            await check_time_zone(session, time_zone)
    else:
        owner = await find_owner(
            session, tenant_id, livemode=livemode, api_key_id=api_key_id, user_id=user_id
        )
    row = await _find_owned(session, tenant_id, owner, window)
    before = None if row is None or row.removed_at is not None else _shown(row)
    if row is None:
        row = _new_row(tenant_id, owner, window)
    if before is None:
        row.enforcement, row.alert_percents = "hard", [50, 80, 100]
    if isinstance(row, HouseBudgetRow):
        row.time_zone = time_zone or (row.time_zone if before is not None else "UTC")
    row.limit_nano, row.removed_at, row.updated_at = limit_nano, None, func.now()
    row.enforcement = enforcement or row.enforcement
    if alert_percents is not None:
        row.alert_percents = sorted(set(alert_percents))
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
    return replace(await _one(session, tenant_id, row.id), is_new=before is None)


async def raise_limit(
    session: Session,
    tenant_id: UUID | None,
    budget_id: int,
    *,
    to_nano: NanoUsd,
    until: datetime,
    reason: str | None = None,
) -> Budget:
    """Raise the limit until a moment at most a year away; then the usual limit applies again.

    `reason`: for the audit trail.

    Raises:
        InvalidRequest: not above the usual limit, or the moment is past or more than a year away.
        NotFound: there is no such budget.
    """
    row = await _find(session, tenant_id, budget_id)
    if not row.limit_nano < to_nano <= MAX_AMOUNT_NANO:
        raise InvalidRequest(
            f"limit_usd of a raise must be above the usual {format_usd_short(row.limit_nano)} USD"
            f" and at most 1000000000 USD (got {format_usd_short(to_nano)}).",
            param="limit_usd",
        )
    now = datetime.now(UTC)
    if not now < until <= now + MAX_RAISE:
        raise InvalidRequest(
            "until must be in the future, at most a year from now "
            f"(got {until.isoformat()}). To change the limit permanently, set it.",
            param="until",
        )
    return await _change_raise(session, tenant_id, row, to_nano, until, reason=reason)


async def end_raise(session: Session, tenant_id: UUID | None, budget_id: int) -> Budget:
    """Restore the usual limit; has no effect if it was not raised.

    Raises:
        NotFound: there is no such budget.
    """
    row = await _find(session, tenant_id, budget_id)
    return await _change_raise(session, tenant_id, row, None, None)


async def remove(session: Session, tenant_id: UUID | None, budget_id: int) -> None:
    """Remove a budget; its spending stays on record, and counts again if the budget is set again.

    Raises:
        NotFound: there is no such budget.
    """
    row = await _find(session, tenant_id, budget_id)
    before = _shown(row)
    # Calls in flight settle in its periods, so the row must stay. It no longer limits anything.
    row.limit_nano, row.removed_at, row.updated_at = MAX_AMOUNT_NANO, func.now(), func.now()
    row.raised_to_nano = row.raised_until = None
    await session.flush()
    await record(
        session,
        Action.BUDGET_REMOVED,
        tenant_id=tenant_id,
        object_id=budget_id,
        before=before,
    )


def _check(
    window: str,
    limit_nano: NanoUsd,
    enforcement: str | None,
    alert_percents: Sequence[int] | None,
) -> None:
    if window not in WINDOWS:
        raise InvalidRequest(
            f"window must be one of {', '.join(WINDOWS)} (got {window!r}).", param="window"
        )
    if not 0 <= limit_nano <= MAX_AMOUNT_NANO:
        raise InvalidRequest("limit_usd must be from 0 to 1000000000 USD.", param="limit_usd")
    if enforcement is not None and enforcement not in ENFORCEMENTS:
        raise InvalidRequest(
            f"enforcement must be one of {', '.join(ENFORCEMENTS)} (got {enforcement!r}).",
            param="enforcement",
        )
    if alert_percents is not None and (
        len(alert_percents) > MAX_ALERTS or not all(1 <= one <= 100 for one in alert_percents)  # noqa: PLR2004 - a percentage
    ):
        raise InvalidRequest(
            f"alert_percents must be at most {MAX_ALERTS} whole numbers from 1 to 100.",
            param="alert_percents",
        )


async def _find_owned(
    session: Session, tenant_id: UUID | None, owner: OwnerIds, window: str
) -> BudgetRow | HouseBudgetRow | None:
    if tenant_id is None:
        return await session.scalar(select(HouseBudgetRow).where(HouseBudgetRow.period == window))
    return await session.scalar(
        select(BudgetRow).where(
            BudgetRow.tenant_id == tenant_id,
            BudgetRow.api_key_id.is_not_distinct_from(owner.api_key_id),
            BudgetRow.user_id.is_not_distinct_from(owner.user_id),
            BudgetRow.livemode.is_(owner.livemode),
            BudgetRow.period == window,
        )
    )


def _new_row(tenant_id: UUID | None, owner: OwnerIds, window: str) -> BudgetRow | HouseBudgetRow:
    if tenant_id is None:
        return HouseBudgetRow(period=window)
    return BudgetRow(
        tenant_id=tenant_id,
        api_key_id=owner.api_key_id,
        user_id=owner.user_id,
        livemode=owner.livemode,
        period=window,
    )


async def _find(
    session: Session, tenant_id: UUID | None, budget_id: int
) -> BudgetRow | HouseBudgetRow:
    await one_at_a_time(session, tenant_id)
    row: BudgetRow | HouseBudgetRow | None
    if tenant_id is None:
        row = await session.scalar(
            select(HouseBudgetRow).where(
                HouseBudgetRow.id == budget_id, HouseBudgetRow.removed_at.is_(None)
            )
        )
    else:
        row = await session.scalar(
            select(BudgetRow).where(
                BudgetRow.tenant_id == tenant_id,
                BudgetRow.id == budget_id,
                BudgetRow.removed_at.is_(None),
            )
        )
    if row is None:
        owner_name = "The operator" if tenant_id is None else "This tenant"
        raise NotFound(f"{owner_name} has no budget {budget_id}.", param="budget_id")
    return row


async def _change_raise(
    session: Session,
    tenant_id: UUID | None,
    row: BudgetRow | HouseBudgetRow,
    to_nano: int | None,
    until: datetime | None,
    *,
    reason: str | None = None,
) -> Budget:
    before = _shown(row)
    row.raised_to_nano, row.raised_until, row.updated_at = to_nano, until, func.now()
    await session.flush()
    await record(
        session,
        Action.BUDGET_UPDATED,
        tenant_id=tenant_id,
        object_id=row.id,
        before=before,
        after=_shown(row) | ({} if reason is None else {"reason": reason}),
    )
    return await _one(session, tenant_id, row.id)


_COLUMNS = """
    b.id, b.period, b.limit_nano, b.enforcement, b.alert_percents, b.raised_to_nano, b.raised_until,
    b.raised_until > clock_timestamp() AS is_raised,
    coalesce(bp.spent_nano, 0) AS spent_nano, coalesce(bp.held_nano, 0) AS held_nano,
    nullif(coalesce(bp.period_start, p.starts_at), '-infinity') AS period_start,
    nullif(coalesce(bp.period_end, p.ends_at), 'infinity') AS resets_at
"""
_OF_TENANT = f"""
    SELECT 'tenant' AS owner, b.api_key_id, k.name AS api_key_name, b.user_id,
        u.name AS user_name, b.livemode, NULL AS time_zone, {_COLUMNS}
    FROM budget b
    JOIN tenant t ON t.id = b.tenant_id
    LEFT JOIN api_key k ON k.tenant_id = b.tenant_id AND k.id = b.api_key_id
    LEFT JOIN tenant_user u ON u.tenant_id = b.tenant_id AND u.id = b.user_id
    CROSS JOIN LATERAL period_bounds(b.period, clock_timestamp(), t.time_zone) p
    LEFT JOIN budget_period bp ON bp.tenant_id = b.tenant_id AND bp.budget_id = b.id
        AND bp.period_start <= clock_timestamp() AND clock_timestamp() < bp.period_end
    WHERE b.removed_at IS NULL AND b.tenant_id = :tenant_id
"""  # noqa: S608 - constants
# A budget of the operator has several rows (shards) per period.
_OF_HOUSE = f"""
    SELECT 'house' AS owner, NULL AS api_key_id, NULL AS api_key_name, NULL AS user_id,
        NULL AS user_name, true AS livemode, b.time_zone, {_COLUMNS}
    FROM house_budget b
    CROSS JOIN LATERAL period_bounds(b.period, clock_timestamp(), b.time_zone) p
    CROSS JOIN LATERAL (
        SELECT sum(x.spent_nano)::bigint AS spent_nano, sum(x.held_nano)::bigint AS held_nano,
            min(x.period_start) AS period_start, min(x.period_end) AS period_end
        FROM house_budget_period x WHERE x.budget_id = b.id
            AND x.period_start <= clock_timestamp() AND clock_timestamp() < x.period_end
    ) bp
    WHERE b.removed_at IS NULL
"""  # noqa: S608 - constants
_ALL = " ORDER BY livemode DESC, api_key_id NULLS FIRST, user_id NULLS FIRST, id"
_ONE = " AND b.id = :id"
_PAGE = " AND b.id < :below ORDER BY b.id DESC LIMIT :limit"
_OF_OWNER = """
    AND b.livemode = :livemode
    AND (b.api_key_id IS NULL OR b.api_key_id = CAST(:key_id AS uuid))
    AND (b.user_id IS NULL OR b.user_id = CAST(:user_id AS uuid))
"""
_OWNED = """
    AND b.livemode = :livemode AND (b.api_key_id IS NOT NULL OR b.user_id IS NOT NULL)
"""
_LIMIT_IN_FORCE = """
    greatest(b.limit_nano, 1,
        CASE WHEN b.raised_until > clock_timestamp() THEN b.raised_to_nano END)
"""
# Periods are computed for the few that are chosen: each costs more than a row.
_MOST_USED = """
    AND b.id IN (
        SELECT b.id FROM budget b
        LEFT JOIN budget_period x ON x.tenant_id = b.tenant_id AND x.budget_id = b.id
            AND x.period_start <= clock_timestamp() AND clock_timestamp() < x.period_end
        WHERE b.tenant_id = :tenant_id AND b.removed_at IS NULL {which}
        ORDER BY coalesce(x.spent_nano + x.held_nano, 0)::numeric / {in_force} DESC, b.id
        LIMIT :limit)
    ORDER BY coalesce(bp.spent_nano + bp.held_nano, 0)::numeric / {in_force} DESC, b.id
"""
_MOST_USED_OWNED = _MOST_USED.format(which=_OWNED, in_force=_LIMIT_IN_FORCE)
_MOST_USED_OF_ALL = _MOST_USED.format(which="", in_force=_LIMIT_IN_FORCE)


async def _select(
    session: Session, tenant_id: UUID | None, which: str, **values: int | UUID | None
) -> list[Budget]:
    if tenant_id is None:
        found = await session.execute(text(f"{_OF_HOUSE}{which}"), values)
    else:
        owned = {"tenant_id": tenant_id, **values}
        found = await session.execute(text(f"{_OF_TENANT}{which}"), owned)
    return [_budget(row) for row in found]


async def list_budgets(session: Session, tenant_id: UUID | None) -> list[Budget]:
    """List every budget of the tenant, or of the operator, with its current period."""
    return await _select(session, tenant_id, _ALL)


async def list_page(
    session: Session, tenant_id: UUID | None, *, limit: int, after: int | None = None
) -> Page[Budget]:
    """List one page of budgets of the tenant or the operator, newest first, after `after`."""
    below = MAX_ID if after is None else after
    return page_of(await _select(session, tenant_id, _PAGE, below=below, limit=limit + 1), limit)


async def _one(session: Session, tenant_id: UUID | None, budget_id: int) -> Budget:
    (budget,) = await _select(session, tenant_id, _ONE, id=budget_id)
    return budget


def _budget(row: Row[Any]) -> Budget:
    return Budget(
        id=row.id,
        owner="key" if row.api_key_id else "user" if row.user_id else row.owner,
        api_key_id=row.api_key_id,
        api_key_name=row.api_key_name,
        user_id=row.user_id,
        user_name=row.user_name,
        livemode=row.livemode,
        window=row.period,
        limit_nano=row.limit_nano,
        enforcement=row.enforcement,
        alert_percents=tuple(row.alert_percents),
        raised_to_nano=row.raised_to_nano if row.is_raised else None,
        raised_until=row.raised_until if row.is_raised else None,
        time_zone=row.time_zone,
        spent_nano=row.spent_nano,
        held_nano=row.held_nano,
        period_start=row.period_start,
        resets_at=row.resets_at,
    )


def _shown(row: BudgetRow | HouseBudgetRow) -> dict[str, object]:
    """Render a budget for the audit trail."""
    owner: dict[str, object] = {"api_key_id": None, "user_id": None, "livemode": True}
    zone: dict[str, object] = {}
    if isinstance(row, HouseBudgetRow):
        zone = {"time_zone": row.time_zone}
    else:
        owner = {"api_key_id": row.api_key_id, "user_id": row.user_id, "livemode": row.livemode}
    raised = row.raised_to_nano is not None and row.raised_until is not None
    return {
        **owner,
        "window": row.period,
        "limit_usd": format_usd_short(row.limit_nano),
        "enforcement": row.enforcement,
        "alert_percents": row.alert_percents,
        "raise": {
            "limit_usd": format_usd_short(row.raised_to_nano or 0),
            "until": row.raised_until,
        }
        if raised
        else None,
        **zone,
    }


async def for_caller(session: TenantSession, caller: Caller) -> list[Budget]:
    """List the budgets that apply to a call of this caller: of its tenant, user and key."""
    owner = OwnerIds(caller.api_key_id, caller.user_id, caller.livemode)
    return await for_owner(session, caller.tenant_id, owner)


async def for_owner(session: Session, tenant_id: UUID, owner: OwnerIds) -> list[Budget]:
    """List the budgets of the tenant and of this owner, of one mode."""
    return await _select(
        session,
        tenant_id,
        _OF_OWNER + _ALL,
        livemode=owner.livemode,
        key_id=owner.api_key_id,
        user_id=owner.user_id,
    )


async def find(session: Session, tenant_id: UUID, budget_id: int) -> Budget | None:
    """Find a budget of the tenant by its id."""
    found = await _select(session, tenant_id, _ONE, id=budget_id)
    return found[0] if found else None


async def list_owned(
    session: TenantSession, caller: Caller, *, limit: int, after: int | None = None
) -> Page[Budget]:
    """List one page of the budgets of users and keys in the caller's mode, newest first."""
    below = MAX_ID if after is None else after
    found = await _select(
        session,
        caller.tenant_id,
        _OWNED + _PAGE,
        livemode=caller.livemode,
        below=below,
        limit=limit + 1,
    )
    return page_of(found, limit)


async def list_most_used(session: TenantSession, caller: Caller, *, limit: int) -> list[Budget]:
    """List the most used budgets of users and keys in the caller's mode, by their share."""
    return await _select(
        session,
        caller.tenant_id,
        _MOST_USED_OWNED,
        livemode=caller.livemode,
        limit=limit,
    )


async def list_most_used_of(session: Session, tenant_id: UUID, *, limit: int) -> Page[Budget]:
    """List the most used budgets of a tenant in both modes, by their share; tell if it has more."""
    return page_of(await _select(session, tenant_id, _MOST_USED_OF_ALL, limit=limit + 1), limit)
