"""The list of calls, as usage reports count them: the entries behind an amount."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, false, func, select, text
from sqlalchemy.orm import aliased

from gateway.billing.usage_queries import OwnDays, Period
from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.money_tables import ReservationRow
from gateway.db.pages import Page, page_of
from gateway.db.tables import ApiKeyRow, TenantRow, TenantUserRow
from gateway.domain import Caller
from gateway.errors import InvalidRequest

CLOCK_SLACK = timedelta(hours=1)
"""The greatest difference between a gateway's clock, from which a call's id is made, and that of
Postgres, by which reports count: calls beyond it are missing in the list."""
FIRST_SPAN = timedelta(minutes=10)
SPAN_GROWTH = 6
"""A list of all tenants is sorted span by span, newest first, each longer than the one before: the
order of all calls has no index, and a page seldom needs more than the newest of them."""
Status = Literal["charged", "estimated", "failed", "in_progress", "unknown", "open"]
STATES: dict[Status, tuple[str, ...]] = {
    "charged": ("posted",),
    "estimated": ("posted_est",),
    "failed": ("void",),
    "in_progress": ("held",),
    "unknown": ("unknown",),
    "open": ("held", "unknown"),
}
"""The states of a reservation for each status of a report; `open`: with money still held."""
NULLABLE: dict[str, Any] = {
    "key": ReservationRow.api_key_id,
    "user": ReservationRow.user_id,
    "size": ReservationRow.served_size,
    "quality": ReservationRow.served_quality,
}
_PLAN_FOR_THIS = text("SET LOCAL plan_cache_mode = force_custom_plan")
_STATUS_OF = {states[0]: status for status, states in STATES.items() if status != "open"}


@dataclass(frozen=True, slots=True)
class CallFilter:
    """A filter of calls; None: no filter. `api_key_id`: the first key of a line.

    `without`: what the calls lack, of `key`, `user`, `size` and `quality`.
    """

    api_key_id: UUID | None = None
    user_id: UUID | None = None
    model: str | None = None
    requested_model: str | None = None
    provider: str | None = None
    operation: str | None = None
    credential: str | None = None
    size: str | None = None
    quality: str | None = None
    status: str | None = None
    without: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ListedPurchase:
    """One call with its names. `cost_nano` is None while its outcome is open."""

    id: UUID
    tenant_id: UUID
    tenant_name: str
    admitted_at: datetime
    operation: str
    requested_model: str
    served_model: str
    provider: str
    credential: str
    size: str | None
    quality: str | None
    status: str
    held_nano: int
    cost_nano: int | None
    api_key_id: UUID | None
    key_name: str | None
    user_id: UUID | None
    user_name: str | None


async def list_calls(
    session: TenantSession,
    caller: Caller,
    chosen: CallFilter,
    period: Period,
    *,
    limit: int,
    after: UUID | None = None,
) -> Page[ListedPurchase]:
    """List one page of the caller's calls admitted in a period, newest first, after `after`.

    A user's caller sees that user's calls, any other the whole tenant's.

    Raises:
        InvalidRequest: an unknown status.
    """
    query = _listing(chosen, period, livemode=caller.livemode, tenant_id=caller.tenant_id)
    if caller.user_id is not None:
        query = query.where(ReservationRow.user_id == caller.user_id)
    whole = (period.start - CLOCK_SLACK, period.end + CLOCK_SLACK)
    return page_of(await _page(session, query, whole, limit + 1, after), limit)


async def list_calls_of_all(
    session: OperatorSession,
    chosen: CallFilter,
    period: Period,
    *,
    tenant_id: UUID | None,
    livemode: bool,
    own_days: OwnDays | None = None,
    limit: int,
    after: UUID | None = None,
) -> Page[ListedPurchase]:
    """List one page of a tenant's (None: all tenants') calls admitted in a period, newest first.

    `own_days`: the days of the period that count.

    Raises:
        InvalidRequest: an unknown status.
    """
    whole = (period.start - CLOCK_SLACK, period.end + CLOCK_SLACK)
    # One tenant's have an index in this order.
    is_of_all = tenant_id is None
    found: list[ListedPurchase] = []
    for start, until in _spans(whole[0], _latest(whole[1], after)) if is_of_all else [whole]:
        inside = Period(
            max(period.start, start - CLOCK_SLACK), min(period.end, until + CLOCK_SLACK)
        )
        query = _listing(chosen, inside, livemode=livemode, tenant_id=tenant_id)
        if own_days is not None:
            at_local = func.timezone(TenantRow.time_zone, ReservationRow.admitted_at)
            query = query.join(TenantRow, TenantRow.id == ReservationRow.tenant_id)
            query = query.where(own_days.of(at_local))
        found += await _page(session, query, (start, until), limit + 1 - len(found), after)
        if len(found) > limit:
            break
    return page_of(found, limit)


def _latest(end: datetime, after: UUID | None) -> datetime:
    """Return the end of the times at which the calls after `after` can have been made."""
    end = min(end, datetime.now(UTC) + CLOCK_SLACK)
    if after is None or after >= _first_id(end):
        return end
    return datetime.fromtimestamp((after.int >> 80) / 1000, UTC) + timedelta(milliseconds=1)


def _spans(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Divide [start, end) into spans that grow, the last one first."""
    length = FIRST_SPAN
    while end > start:
        first = max(start, end - length)
        yield first, end
        end, length = first, length * SPAN_GROWTH


def _listing(
    chosen: CallFilter, period: Period, *, livemode: bool, tenant_id: UUID | None = None
) -> Select[*tuple[Any, ...]]:
    """Select the calls of a period."""
    query = select(ReservationRow).where(
        ReservationRow.livemode.is_(livemode),
        ReservationRow.admitted_at >= period.start,
        ReservationRow.admitted_at < period.end,
        *_chosen(chosen),
    )
    return query if tenant_id is None else query.where(ReservationRow.tenant_id == tenant_id)


async def _page(
    session: TenantSession | OperatorSession,
    query: Select[*tuple[Any, ...]],
    made: tuple[datetime, datetime],
    limit: int,
    after: UUID | None,
) -> list[ListedPurchase]:
    """Read the newest calls whose ids were made between two times, with their names."""
    # A plan for any period expects few calls, and would sort all of them.
    await session.execute(_PLAN_FOR_THIS)
    # Ids begin with their time, and their index lists a tenant's calls in order.
    start, end = made
    query = query.where(ReservationRow.id >= _first_id(start), ReservationRow.id < _first_id(end))
    if after is not None:
        query = query.where(ReservationRow.id < after)
    newest = query.order_by(ReservationRow.id.desc()).limit(limit).subquery("newest")
    row = aliased(ReservationRow, newest)
    key = and_(ApiKeyRow.tenant_id == row.tenant_id, ApiKeyRow.id == row.api_key_id)
    user = and_(TenantUserRow.tenant_id == row.tenant_id, TenantUserRow.id == row.user_id)
    named = (
        select(row, TenantRow.name, ApiKeyRow.name, TenantUserRow.name)
        .join(TenantRow, TenantRow.id == row.tenant_id)
        .outerjoin(ApiKeyRow, key)
        .outerjoin(TenantUserRow, user)
        .order_by(row.id.desc())
    )
    return [_listed(*one) for one in (await session.execute(named)).all()]


def _first_id(at: datetime) -> UUID:
    """Return the lowest id of version 7 that is made at a time."""
    return UUID(int=max(0, int(at.timestamp() * 1000)) << 80)


def _chosen(chosen: CallFilter) -> list[ColumnElement[bool]]:
    if chosen.status is not None and chosen.status not in STATES:
        raise InvalidRequest(f"status must be one of {', '.join(STATES)}.", param="status")
    equal: dict[Any, object] = {
        ReservationRow.api_key_id: chosen.api_key_id,
        ReservationRow.user_id: chosen.user_id,
        ReservationRow.served_model: chosen.model,
        ReservationRow.requested_model: chosen.requested_model,
        ReservationRow.provider: chosen.provider,
        ReservationRow.operation: chosen.operation,
        ReservationRow.credential: chosen.credential,
        ReservationRow.served_size: chosen.size,
        ReservationRow.served_quality: chosen.quality,
    }
    found: list[ColumnElement[bool]] = []
    for column, value in equal.items():
        if value is None:
            continue
        # Postgres refuses NUL, and no name contains it.
        is_name = not isinstance(value, str) or value.isprintable()
        found.append(column == value if is_name else false())
    found += [column.is_(None) for name, column in NULLABLE.items() if name in chosen.without]
    for status, states in STATES.items():
        if status == chosen.status:
            found.append(ReservationRow.state.in_(states))
    return found


def _listed(
    row: ReservationRow, tenant_name: str, key_name: str | None, user_name: str | None
) -> ListedPurchase:
    return ListedPurchase(
        id=row.id,
        tenant_id=row.tenant_id,
        tenant_name=tenant_name,
        admitted_at=row.admitted_at,
        operation=row.operation,
        requested_model=row.requested_model,
        served_model=row.served_model,
        provider=row.provider,
        credential=row.credential,
        size=row.served_size,
        quality=row.served_quality,
        status=_STATUS_OF[row.state],
        held_nano=row.held_nano,
        cost_nano=row.final_nano,
        api_key_id=row.api_key_id,
        key_name=key_name,
        user_id=row.user_id,
        user_name=user_name,
    )
