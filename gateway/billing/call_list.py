"""The list of a tenant's calls, as usage reports count them: the entries behind an amount."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, and_, false, select

from gateway.billing.usage_queries import Period
from gateway.db.engine import TenantSession
from gateway.db.money_tables import ReservationRow
from gateway.db.pages import Page, page_of
from gateway.db.tables import ApiKeyRow, TenantUserRow
from gateway.domain import Caller
from gateway.errors import InvalidRequest

CLOCK_SLACK = timedelta(hours=1)
"""The greatest difference between a gateway's clock, from which a call's id is made, and that of
Postgres, by which reports count: calls beyond it are missing in the list."""
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
_STATUS_OF = {states[0]: status for status, states in STATES.items() if status != "open"}


@dataclass(frozen=True, slots=True)
class CallFilter:
    """A filter of calls; None: no filter. `api_key_id`: the first key of a line."""

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


@dataclass(frozen=True, slots=True)
class ListedPurchase:
    """One call with its names. `cost_nano` is None while its outcome is open."""

    id: UUID
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
    key = and_(
        ApiKeyRow.tenant_id == ReservationRow.tenant_id, ApiKeyRow.id == ReservationRow.api_key_id
    )
    user = and_(
        TenantUserRow.tenant_id == ReservationRow.tenant_id,
        TenantUserRow.id == ReservationRow.user_id,
    )
    query = (
        select(ReservationRow, ApiKeyRow.name, TenantUserRow.name)
        .outerjoin(ApiKeyRow, key)
        .outerjoin(TenantUserRow, user)
        .where(
            ReservationRow.tenant_id == caller.tenant_id,
            ReservationRow.livemode.is_(caller.livemode),
            ReservationRow.admitted_at >= period.start,
            ReservationRow.admitted_at < period.end,
            # Ids begin with their time, and their index lists a tenant's calls in order.
            ReservationRow.id >= _first_id(period.start - CLOCK_SLACK),
            ReservationRow.id < _first_id(period.end + CLOCK_SLACK),
            *_chosen(chosen),
        )
        .order_by(ReservationRow.id.desc())
        .limit(limit + 1)
    )
    if caller.user_id is not None:
        query = query.where(ReservationRow.user_id == caller.user_id)
    if after is not None:
        query = query.where(ReservationRow.id < after)
    rows: Sequence[Any] = (await session.execute(query)).all()
    return page_of([_listed(*row) for row in rows], limit)


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
    for status, states in STATES.items():
        if status == chosen.status:
            found.append(ReservationRow.state.in_(states))
    return found


def _listed(row: ReservationRow, key_name: str | None, user_name: str | None) -> ListedPurchase:
    return ListedPurchase(
        id=row.id,
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
