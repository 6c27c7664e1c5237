"""Usage reports: sums of ledger lines, so that report and ledger cannot disagree."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from gateway.billing.usage_queries import (
    ESTIMATED,
    OPEN,
    GroupField,
    Period,
    ReportQuery,
    settled,
    unsettled,
)
from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.tables import TenantRow
from gateway.db.time_zones import check_time_zone
from gateway.errors import InvalidRequest

MAX_ROWS = 10_000
MAX_EXPORTED_ROWS = 1_000_000
QUERY_CANCELED = "57014"
"""The SQLSTATE of a statement beyond its time limit."""


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
    """Sums over the calls admitted in a period, grouped; `total` has an empty group."""

    query: ReportQuery
    rows: tuple[UsageRow, ...]
    total: UsageRow


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


async def report_zone(
    session: TenantSession | OperatorSession, asked: str | None, default: str
) -> str:
    """Return the time zone of a report: that asked for, else the default.

    Raises:
        InvalidRequest: no such time zone.
    """
    if asked is None:
        return default
    await check_time_zone(session, asked)
    return asked


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


async def report(session: TenantSession | OperatorSession, query: ReportQuery) -> UsageReport:
    """Report usage by the time of admission.

    Raises:
        InvalidRequest: the report has too many rows or takes too long (`report_too_large`).
    """
    rows = [row async for row in _rows(session, query, limit=MAX_ROWS + 1)]
    if len(rows) > MAX_ROWS:
        raise _too_large(
            f"has more than {MAX_ROWS} rows", "Ask for format=csv or jsonl, a shorter period"
        )
    rows.sort(key=lambda row: _in_order(row.group))  # settled groups and others in one order
    listed = tuple(rows) if query.group_by else ()
    return UsageReport(query, listed, _total(rows))


async def export(
    session: TenantSession | OperatorSession,
    query: ReportQuery,
    *,
    max_rows: int = MAX_EXPORTED_ROWS,
) -> AsyncIterator[UsageRow]:
    """Yield the rows of a report one by one; without groups, its total.

    Raises:
        InvalidRequest: it has more rows than can be exported, or takes too long
            (`report_too_large`).
    """
    count = 0
    async for row in _rows(session, query, limit=max_rows + 1):
        count += 1
        if count > max_rows:
            raise _too_large(f"has more than {max_rows} rows", "Ask for a shorter period")
        yield row


def _too_large(reason: str, advice: str) -> InvalidRequest:
    return InvalidRequest(
        f"This report {reason}. {advice}, one tenant, or fewer fields in group_by.",
        code="report_too_large",
        param="group_by",
    )


async def _rows(
    session: TenantSession | OperatorSession, query: ReportQuery, *, limit: int
) -> AsyncIterator[UsageRow]:
    """Yield at most `limit` groups, sorted in each of two parts: settled ones, then others."""
    try:
        unsettled_rows = await _unsettled(session, query, limit)
        width = len(query.columns)
        async for row in await session.stream(settled(query, limit=limit)):
            group = tuple(row[:width])
            known = unsettled_rows.pop(group, None)
            sums = UsageRow(group, *(int(value) for value in row[width:]))
            yield (
                sums
                if known is None
                else replace(sums, estimated_nano=known.estimated_nano, open_nano=known.open_nano)
            )
        for group in sorted(unsettled_rows, key=_in_order):
            yield unsettled_rows[group]
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != QUERY_CANCELED:
            raise
        raise _too_large("takes too long", "Ask for a shorter period") from error


async def _unsettled(
    session: TenantSession | OperatorSession, query: ReportQuery, limit: int
) -> dict[tuple[str | None, ...], UsageRow]:
    """Read the estimated and the open part of each group that has one."""
    rows: dict[tuple[str | None, ...], UsageRow] = {}
    for condition, amount, add in (
        (ESTIMATED, "final_nano", _with_estimated),
        (OPEN, "held_nano", _with_open),
    ):
        statement = unsettled(query.tenant_id, query, condition, amount, limit=limit)
        for found in await session.execute(statement):
            group, nano = tuple(found[:-1]), int(found[-1])
            if nano:
                rows[group] = add(rows.get(group, UsageRow(group, 0, 0, 0, 0, 0)), nano)
    return rows


def _with_estimated(row: UsageRow, nano: int) -> UsageRow:
    return replace(row, estimated_nano=nano)


def _with_open(row: UsageRow, nano: int) -> UsageRow:
    return replace(row, open_nano=nano)


def _in_order(group: tuple[str | None, ...]) -> tuple[tuple[bool, str], ...]:
    return tuple((text is None, text or "") for text in group)


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
