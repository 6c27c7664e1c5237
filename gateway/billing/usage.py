"""Usage reports: sums over ledger entries, so that report and ledger cannot disagree."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, get_args
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import ColumnElement, Select, Text, cast, false, func, literal_column, select

from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.money_tables import LedgerRow, ReservationRow
from gateway.db.tables import ApiKeyRow, TenantRow, TenantUserRow
from gateway.errors import InvalidRequest

GroupField = Literal["day", "model", "requested_model", "key", "user", "tenant"]
GROUP_FIELDS: tuple[GroupField, ...] = get_args(GroupField)
MAX_ROWS = 10_000
_COLUMNS: dict[GroupField, tuple[str, ...]] = {
    "key": ("key", "key_name"),
    "user": ("user", "user_id"),
    "tenant": ("tenant", "tenant_id"),
}
"""Group fields that add columns: a name has its id beside it."""


@dataclass(frozen=True, slots=True)
class UsageFilters:
    """The filters of a report; None: no filter. `key_id`: the first key of a line."""

    key_id: UUID | None = None
    user_id: UUID | None = None
    model: str | None = None


EVERYTHING = UsageFilters()


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One group of a report; `group` has one text per column. Money in nano-USD.

    `estimated_nano` is the estimated part of `cost_nano`; `open_nano` is reserved for calls of
    unknown cost, and not part of `cost_nano`.
    """

    group: tuple[str | None, ...]
    requests: int
    images: int
    input_tokens: int
    output_tokens: int
    cost_nano: int
    estimated_nano: int = 0
    open_nano: int = 0


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Sums over the calls admitted in [start, end), grouped; `total` has an empty group."""

    start: datetime
    end: datetime
    group_by: tuple[GroupField, ...]
    rows: tuple[UsageRow, ...]
    total: UsageRow

    @property
    def columns(self) -> tuple[str, ...]:
        """The column names of each group: the requested fields, with names beside ids."""
        return tuple(name for field in self.group_by for name in _COLUMNS.get(field, (field,)))


@dataclass(frozen=True, slots=True)
class Period:
    """The instants [start, end)."""

    start: datetime
    end: datetime


def parse_period(start: str | None, end: str | None, zone: str) -> Period:
    """Parse the bounds of a report: dates are whole days of `zone`, the last one included.

    Default: the current month until now.

    Raises:
        InvalidRequest: not ISO 8601, or an empty period.
    """
    now = datetime.now(ZoneInfo(zone))
    starts = parse_moment(start, "start", zone, is_end=False) if start else None
    ends = parse_moment(end, "end", zone, is_end=True) if end else now + timedelta(minutes=1)
    starts = starts or datetime(now.year, now.month, 1, tzinfo=ZoneInfo(zone))
    if starts >= ends:
        raise InvalidRequest(
            f"start must be before end (got {starts.isoformat()} and {ends.isoformat()}).",
            param="start",
        )
    return Period(starts.astimezone(UTC), ends.astimezone(UTC))


def parse_moment(text: str, param: str, zone: str, *, is_end: bool) -> datetime:
    """Parse one bound of a period: a date-time, or the begin or end of a day of `zone`.

    Raises:
        InvalidRequest: not ISO 8601.
    """
    try:
        if len(text) == len("2026-11-20"):
            day = date.fromisoformat(text) + timedelta(days=1 if is_end else 0)
            moment = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))
        else:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{param} must be an ISO 8601 date or date-time, such as 2026-11-20.", param=param
        ) from None


def last_month(zone: str) -> tuple[str, str]:
    """Return the first and the last day of the previous month, in days of `zone`."""
    end = datetime.now(ZoneInfo(zone)).date().replace(day=1) - timedelta(days=1)
    return end.replace(day=1).isoformat(), end.isoformat()


async def tenant_zone(session: TenantSession, tenant_id: UUID) -> str:
    """Return the tenant's time zone, in which its days begin."""
    query = select(TenantRow.time_zone).where(TenantRow.id == tenant_id)
    return (await session.scalars(query)).one()


def parse_group_by(text: str, *, allowed: Sequence[GroupField]) -> tuple[GroupField, ...]:
    """Parse a list of group fields such as `"day,model"`.

    Raises:
        InvalidRequest: an unknown or repeated field.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    fields = tuple(field for name in names for field in allowed if field == name)
    if len(fields) != len(names) or len(set(fields)) != len(fields):
        raise InvalidRequest(f"group_by takes any of: {', '.join(allowed)}.", param="group_by")
    return fields


async def tenant_report(
    session: TenantSession,
    tenant_id: UUID,
    *,
    livemode: bool,
    period: Period,
    group_by: tuple[GroupField, ...],
    filters: UsageFilters = EVERYTHING,
) -> UsageReport:
    """Report a tenant's usage, by the time of admission, in days of its time zone.

    Raises:
        InvalidRequest: the period is empty, or the report has too many rows.
    """
    asked = _Asked(tenant_id, filters, livemode, period, group_by)
    return await _run(session, asked)


async def operator_report(
    session: OperatorSession,
    *,
    livemode: bool,
    period: Period,
    group_by: tuple[GroupField, ...],
    filters: UsageFilters = EVERYTHING,
) -> UsageReport:
    """Report every tenant's usage, in days of each tenant's own time zone.

    Raises:
        InvalidRequest: the period is empty, or the report has too many rows.
    """
    return await _run(session, _Asked(None, filters, livemode, period, group_by))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A report request, for one tenant or (None) for all that the session sees."""

    tenant_id: UUID | None
    filters: UsageFilters
    livemode: bool
    period: Period
    group_by: tuple[GroupField, ...]

    @property
    def width(self) -> int:
        """The number of texts that name a group."""
        return sum(len(_COLUMNS.get(field, (field,))) for field in self.group_by)


Entry = type[LedgerRow] | type[ReservationRow]
_ADMITTED: dict[Entry, ColumnElement[datetime]] = {
    # The index's expression; entries of earlier releases have no time of admission.
    LedgerRow: func.coalesce(LedgerRow.admitted_at, LedgerRow.at),
    ReservationRow: ReservationRow.admitted_at.expression,
}
_ESTIMATED: ColumnElement[bool] = literal_column("reservation.state = 'posted_est'")
_OPEN: ColumnElement[bool] = literal_column("reservation.state IN ('held', 'unknown')")
"""Literals, because Postgres uses the small partial indexes only with them."""


def _ledger_sums(asked: _Asked) -> Select[*tuple[Any, ...]]:
    tokens_in = LedgerRow.text_input_tokens + LedgerRow.image_input_tokens
    tokens_out = LedgerRow.text_output_tokens + LedgerRow.image_output_tokens
    query = _grouped(
        asked.tenant_id,
        asked,
        LedgerRow,
        func.coalesce(func.sum(LedgerRow.requests), 0).label("requests"),
        func.coalesce(func.sum(LedgerRow.images), 0).label("images"),
        func.coalesce(func.sum(tokens_in), 0).label("input_tokens"),
        func.coalesce(func.sum(tokens_out), 0).label("output_tokens"),
        func.coalesce(func.sum(LedgerRow.amount_nano), 0).label("cost_nano"),
    ).where(LedgerRow.kind != "hold")
    if not asked.group_by:
        return query
    # A group with only refused calls has nothing to report.
    return query.having(
        (func.sum(LedgerRow.requests) != 0) | (func.sum(LedgerRow.amount_nano) != 0)
    )


def _grouped(
    tenant_id: UUID | None, asked: _Asked, entry: Entry, *sums: ColumnElement[Any]
) -> Select[*tuple[Any, ...]]:
    columns = [column for field in asked.group_by for column in _group_columns(field, entry)]
    positions: list[ColumnElement[Any]] = [
        literal_column(str(index + 1)) for index in range(len(columns))
    ]
    query = (
        select(*columns, *sums)
        .select_from(entry)
        .join(TenantRow, TenantRow.id == entry.tenant_id)
        .where(
            entry.livemode.is_(asked.livemode),
            _ADMITTED[entry] >= asked.period.start,
            _ADMITTED[entry] < asked.period.end,
        )
        .limit(MAX_ROWS + 1)
    )
    if tenant_id is not None:
        query = query.where(entry.tenant_id == tenant_id)
    if asked.filters.key_id is not None:
        query = query.where(entry.api_key_id == asked.filters.key_id)
    if asked.filters.user_id is not None:
        query = query.where(entry.user_id == asked.filters.user_id)
    if asked.filters.model is not None:
        # Postgres refuses NUL, and no model name contains it.
        is_name = asked.filters.model.isprintable()
        query = query.where(entry.served_model == asked.filters.model if is_name else false())
    if "user" in asked.group_by:
        query = query.outerjoin(TenantUserRow, TenantUserRow.id == entry.user_id)
    if "key" in asked.group_by:
        query = query.outerjoin(ApiKeyRow, ApiKeyRow.id == entry.api_key_id)
    return query.group_by(*positions).order_by(*positions) if columns else query


def _group_columns(field: GroupField, entry: Entry) -> tuple[ColumnElement[str], ...]:
    local = func.timezone(TenantRow.time_zone, _ADMITTED[entry])
    columns: dict[GroupField, tuple[ColumnElement[Any], ...]] = {
        "day": (func.to_char(local, "YYYY-MM-DD"),),
        "model": (entry.served_model.expression,),
        "requested_model": (entry.requested_model.expression,),
        "key": (cast(entry.api_key_id, Text), ApiKeyRow.name.expression),
        "user": (TenantUserRow.name.expression, cast(entry.user_id, Text)),
        "tenant": (TenantRow.name.expression, cast(entry.tenant_id, Text)),
    }
    return columns[field]


async def _run(session: TenantSession | OperatorSession, asked: _Asked) -> UsageReport:
    rows: dict[tuple[str | None, ...], UsageRow] = {}
    for row in await session.execute(_ledger_sums(asked)):
        group = tuple(row[: asked.width])
        rows[group] = UsageRow(
            group=group,
            requests=int(row.requests),
            images=int(row.images),
            input_tokens=int(row.input_tokens),
            output_tokens=int(row.output_tokens),
            cost_nano=int(row.cost_nano),
        )
    is_new = False
    for condition, amount, is_open in (
        (_ESTIMATED, ReservationRow.final_nano, False),
        (_OPEN, ReservationRow.held_nano, True),
    ):
        total = func.coalesce(func.sum(amount), 0)
        query = _grouped(asked.tenant_id, asked, ReservationRow, total).where(condition)
        for found in await session.execute(query):
            group = tuple(found[:-1])
            is_new = is_new or group not in rows
            known = rows.get(group, UsageRow(group, 0, 0, 0, 0, 0))
            nano = int(found[-1])
            rows[group] = (
                replace(known, open_nano=nano) if is_open else replace(known, estimated_nano=nano)
            )
    if len(rows) > MAX_ROWS:
        raise InvalidRequest(
            f"This report has more than {MAX_ROWS} rows. Ask for a shorter period or "
            "for fewer fields in group_by.",
            param="group_by",
        )
    found_rows = sorted(rows.values(), key=_in_order) if is_new else list(rows.values())
    period, group_by = asked.period, asked.group_by
    listed = tuple(found_rows) if group_by else ()
    return UsageReport(period.start, period.end, group_by, listed, _total(found_rows))


def _in_order(row: UsageRow) -> tuple[tuple[bool, str], ...]:
    return tuple((text is None, text or "") for text in row.group)


def _total(rows: Sequence[UsageRow]) -> UsageRow:
    return UsageRow(
        group=(),
        requests=sum(row.requests for row in rows),
        images=sum(row.images for row in rows),
        input_tokens=sum(row.input_tokens for row in rows),
        output_tokens=sum(row.output_tokens for row in rows),
        cost_nano=sum(row.cost_nano for row in rows),
        estimated_nano=sum(row.estimated_nano for row in rows),
        open_nano=sum(row.open_nano for row in rows),
    )
