"""Usage reports: sums of ledger lines, so that report and ledger cannot disagree."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, time, timedelta
from operator import add, attrgetter
from uuid import UUID
from zoneinfo import ZoneInfo

import asyncpg
import orjson
from sqlalchemy import func, select
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
from gateway.db.engine import (
    LOST_CLASSES,
    QUERY_CANCELED,
    DatabaseUnavailable,
    OperatorSession,
    TenantSession,
)
from gateway.db.tables import TenantRow
from gateway.db.time_zones import check_time_zone
from gateway.errors import InvalidRequest

MAX_ROWS = 10_000
"""Groups of a report in one answer."""
MAX_EXPORTED_ROWS = 1_000_000
"""Groups of a report that is sent as a file or page by page."""


Group = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One group of a report; `group` has one text per column. Money in nano-USD.

    `requests` were charged, `failed_requests` were not. `estimated_requests` and `estimated_nano`
    are the estimated part of `requests` and `cost_nano`. `open_requests` are under way or of
    unknown outcome, and in none of the others; `open_nano` is reserved for them.
    """

    group: Group
    requests: int = 0
    images: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    failed_requests: int = 0
    estimated_requests: int = 0
    estimated_nano: int = 0
    open_requests: int = 0
    open_nano: int = 0

    @property
    def numbers(self) -> tuple[int, ...]:
        """The sums, in the order of the fields."""
        return _numbers(self)


_SUMMED = tuple(field.name for field in fields(UsageRow) if field.name != "group")
_numbers: Callable[[UsageRow], tuple[int, ...]] = attrgetter(*_SUMMED)
_NO_SUMS = (0,) * (len(_SUMMED) - 4)
"""Those of a group that has nothing settled; the other four are estimated and open."""


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Sums over the calls admitted in a period, grouped; `total` has an empty group.

    `rows` are a page of the groups, `total` the sums of all; `has_more`: further groups follow.
    """

    query: ReportQuery
    rows: tuple[UsageRow, ...]
    total: UsageRow
    has_more: bool = False


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
        day = _date(text)
        if day is None:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))
        else:
            day += timedelta(days=1 if is_end else 0)
            moment = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{param} must be an ISO 8601 date or date-time, such as 2026-11-20.", param=param
        ) from None


def _date(text: str) -> date | None:
    """Parse a date in any form of ISO 8601; None if this is a date-time, or neither."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


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


async def report(
    session: TenantSession | OperatorSession,
    query: ReportQuery,
    *,
    after: Group | None = None,
    limit: int = MAX_ROWS,
) -> UsageReport:
    """Report usage by the time of admission: the first `limit` groups after the group `after`.

    Raises:
        InvalidRequest: the report has too many groups or takes too long (`report_too_large`).
    """
    last = None if after is None else _in_order(after)
    page: list[UsageRow] = []
    sums = [0] * len(_SUMMED)
    has_more = False
    async for row in export(session, query):
        sums = list(map(add, sums, row.numbers))
        if last is None or _in_order(row.group) > last:
            page.append(row)
        if len(page) > 2 * limit:
            # Of more groups than a page, only its own are kept.
            page = _first(page, limit)
            has_more = True
    has_more = has_more or len(page) > limit
    rows = tuple(_first(page, limit)) if query.group_by else ()
    return UsageReport(query, rows, UsageRow((), *sums), has_more=has_more and bool(query.group_by))


async def whole_report(session: TenantSession | OperatorSession, query: ReportQuery) -> UsageReport:
    """Report usage with all groups.

    Raises:
        InvalidRequest: it has too many groups, or takes too long (`report_too_large`).
    """
    found = await report(session, query)
    if found.has_more:
        raise too_large(f"has more than {MAX_ROWS} rows", "Ask for a shorter period")
    return found


def cursor_of(group: Group) -> str:
    """Render a group as the text that `parse_cursor` reads."""
    return urlsafe_b64encode(orjson.dumps(group)).decode().rstrip("=")


def parse_cursor(text: str, query: ReportQuery) -> Group:
    """Parse the position of a page in a report.

    Raises:
        InvalidRequest: it is not one that a report with these groups has returned.
    """
    try:
        group = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:
        group = None
    if (
        not isinstance(group, list)
        or len(group) != len(query.columns)
        or not all(value is None or isinstance(value, str) for value in group)
    ):
        raise InvalidRequest(
            "after must be the `next_after` of a report with the same group_by.", param="after"
        )
    return tuple(group)


async def export(
    session: TenantSession | OperatorSession,
    query: ReportQuery,
    *,
    max_rows: int = MAX_EXPORTED_ROWS,
) -> AsyncIterator[UsageRow]:
    """Yield the rows of a report one by one; without groups, its total.

    Raises:
        InvalidRequest: it has too many groups, or takes too long (`report_too_large`).
    """
    count = 0
    async for row in _rows(session, query, limit=max_rows + 1):
        count += 1
        if count > max_rows:
            raise too_large(f"has more than {max_rows} rows", "Ask for a shorter period")
        yield row


def too_large(reason: str, advice: str) -> InvalidRequest:
    """Build the refusal of a report."""
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
        if query.may_need_lines:
            await _refuse_archived(session, query)
        others = await _unsettled(session, query, limit)
        width = len(query.columns)
        async for row in await session.stream(settled(query, limit=limit)):
            group = tuple(row[:width])
            known = others.pop(group, _Unsettled())
            yield _row(group, [int(value) for value in row[width:]], known)
        for group in sorted(others, key=_in_order):
            yield _row(group, [], others[group])
    except (DBAPIError, asyncpg.PostgresError) as error:
        # While rows are read, SQLAlchemy hands on the driver's own errors.
        cause = error.orig if isinstance(error, DBAPIError) else error
        state = getattr(cause, "sqlstate", None) or ""
        if state == QUERY_CANCELED:
            raise too_large("takes too long", "Ask for a shorter period") from error
        if isinstance(error, asyncpg.PostgresError) and state[:2] in LOST_CLASSES:
            raise DatabaseUnavailable from error
        raise


async def _archived_to(
    session: TenantSession | OperatorSession, query: ReportQuery, start: datetime | None
) -> datetime | None:
    """Return the latest time of archived entries that the report needs."""
    bounds = (start, query.period.read_end)
    found: datetime | None = await session.scalar(
        select(func.usage_archived_to(query.tenant_id, query.summed_zone, *bounds, query.source))
    )
    return found


async def _refuse_archived(session: TenantSession | OperatorSession, query: ReportQuery) -> None:
    """Refuse a report on entries of which only the sums are left.

    Raises:
        InvalidRequest: `report_archived`.
    """
    start = query.period.start
    archived_to = await _archived_to(session, query, start)
    if archived_to is not None and query.own_days is not None:
        # The period has room for any time zone: look again from the first of those that there are.
        zones = select(TenantRow.time_zone.label("zone")).distinct().subquery()
        first = datetime.combine(query.own_days.first, time())
        start = await session.scalar(select(func.min(func.timezone(zones.c.zone, first))))
        archived_to = await _archived_to(session, query, start)
    if archived_to is not None:
        raise InvalidRequest(
            "This report needs ledger entries that are archived, the latest of "
            f"{archived_to.astimezone(UTC).isoformat(timespec='seconds')}. Their sums are kept by "
            "quarter of an hour, and for keys and users by day of the tenant's time zone; not by "
            "quality, size or status. Ask for those, or for a later start.",
            code="report_archived",
            param="start",
        )


@dataclass(slots=True)
class _Unsettled:
    """Number and nano-USD of a group's estimated and of its open calls."""

    estimated: tuple[int, int] = (0, 0)
    open: tuple[int, int] = (0, 0)


def _row(group: Group, settled_sums: Sequence[int], others: _Unsettled) -> UsageRow:
    sums = [*(settled_sums or _NO_SUMS), *others.estimated, *others.open]
    return UsageRow(group, *sums)


async def _unsettled(
    session: TenantSession | OperatorSession, query: ReportQuery, limit: int
) -> dict[Group, _Unsettled]:
    """Read the estimated and the open part of each group that has one."""
    rows: dict[Group, _Unsettled] = defaultdict(_Unsettled)
    statement = unsettled(query.tenant_id, query, ESTIMATED, "final_nano", limit=limit)
    for *group, calls, nano in await session.execute(statement):
        if calls:
            rows[tuple(group)].estimated = (int(calls), int(nano))
    statement = unsettled(query.tenant_id, query, OPEN, "held_nano", limit=limit)
    for *group, calls, nano in await session.execute(statement):
        if calls:
            rows[tuple(group)].open = (int(calls), int(nano))
    return dict(rows)


def _first(rows: list[UsageRow], limit: int) -> list[UsageRow]:
    return sorted(rows, key=lambda row: _in_order(row.group))[:limit]


def _in_order(group: Group) -> tuple[tuple[bool, str], ...]:
    return tuple((text is None, text or "") for text in group)
