"""The queries of usage reports.

Settled usage is read from sums of the ledger (`usage_between`, an SQL function), calls that are
not settled from their reservations: few, with indexes of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal, get_args
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Date,
    Select,
    Text,
    TextClause,
    Uuid,
    and_,
    bindparam,
    cast,
    column,
    false,
    func,
    literal,
    literal_column,
    select,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.sql.selectable import FromClause, Subquery

from gateway.db.money_tables import ReservationRow
from gateway.db.tables import ApiKeyRow, TenantRow, TenantUserRow, Timestamp

GroupField = Literal[
    "month",
    "day",
    "hour",
    "model",
    "requested_model",
    "provider",
    "operation",
    "credential_owner",
    "quality",
    "size",
    "status",
    "key",
    "user",
    "tenant",
]
GROUP_FIELDS: tuple[GroupField, ...] = get_args(GroupField)
NAMED: dict[GroupField, tuple[str, ...]] = {
    "key": ("key", "key_name"),
    "user": ("user", "user_id"),
    "tenant": ("tenant", "tenant_id"),
}
"""Group fields of two columns: a name has its id beside it."""
TIMES: dict[GroupField, str] = {
    "month": "YYYY-MM",
    "day": "YYYY-MM-DD",
    "hour": 'YYYY-MM-DD"T"HH24:00',
}
IDS: dict[GroupField, str] = {"key": "api_key_id", "user": "user_id", "tenant": "tenant_id"}
PLAIN: dict[GroupField, str] = {"model": "served_model", "credential_owner": "credential"}
"""Group fields whose column has another name than the field."""
LINES: frozenset[GroupField] = frozenset({"quality", "size", "status"})
"""Fields that change when a late answer arrives, so that no sum is kept by them."""
OWNERS: frozenset[GroupField] = frozenset({"key", "user"})

Source = Literal["day", "whole_day", "owner_day", "whole_owner_day", "slot", "line"]
_IDENTIFIERS = ("tenant_id", "api_key_id", "user_id")
_TEXTS = ("requested_model", "served_model", "provider", "operation", "credential")
_SUMS = (
    "calls",
    "requests",
    "images",
    "text_input_tokens",
    "image_input_tokens",
    "text_output_tokens",
    "image_output_tokens",
    "amount_nano",
)
ESTIMATED = text("reservation.state = 'posted_est'")
OPEN = text("reservation.state IN ('held', 'unknown')")
"""Literals, because Postgres uses the small partial indexes only with them."""


@dataclass(frozen=True, slots=True)
class UsageFilters:
    """The filters of a report; None: no filter. `key_id`: the first key of a line.

    `requested_models`: any of these, as the callers named them.
    """

    key_id: UUID | None = None
    user_id: UUID | None = None
    model: str | None = None
    provider: str | None = None
    operation: str | None = None
    credential_owner: str | None = None
    requested_models: tuple[str, ...] | None = None


EVERYTHING = UsageFilters()


@dataclass(frozen=True, slots=True)
class Period:
    """The instants [start, end)."""

    start: datetime
    end: datetime

    @property
    def read_end(self) -> datetime:
        """Return an end with the same calls, from which no part of a quarter need be cut off.

        No call is admitted in the future.
        """
        now = datetime.now(UTC)
        if self.end < now:
            return self.end
        return now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=4)


@dataclass(frozen=True, slots=True)
class OwnDays:
    """The days from `first` to `last`, each tenant's in its own time zone."""

    first: date
    last: date

    @property
    def period(self) -> Period:
        """Instants in which these days lie whole in every time zone: from UTC-12 to UTC+14."""
        first = datetime.combine(self.first, time(), UTC) - timedelta(days=1)
        return Period(first, datetime.combine(self.last, time(), UTC) + timedelta(days=2))

    def of(self, at_local: ColumnElement[datetime]) -> ColumnElement[bool]:
        """Build the condition that a tenant's local time lies in them."""
        first = datetime.combine(self.first, time())
        end = datetime.combine(self.last, time()) + timedelta(days=1)
        return and_(at_local >= first, at_local < end)


@dataclass(frozen=True, slots=True)
class ReportQuery:
    """A report request, for one tenant or (None) for all that the session sees.

    `zone`: the time zone of its days and hours; None, each tenant's own. `own_days`: the days that
    count, of a period that has them whole everywhere.
    """

    tenant_id: UUID | None
    filters: UsageFilters
    livemode: bool
    period: Period
    group_by: tuple[GroupField, ...] = ()
    zone: str | None = None
    own_days: OwnDays | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The column names of each group: the requested fields, with ids beside names."""
        return tuple(name for field in self.group_by for name in NAMED.get(field, (field,)))

    @property
    def summed_zone(self) -> str | None:
        """The time zone of the days that it sums; None, each tenant's own, which are kept summed.

        Without times among its groups, only its bounds are in `zone`.
        """
        return self.zone if TIMES.keys() & set(self.group_by) else None

    @property
    def source(self) -> Source:
        """The coarsest sums that can answer it; see the SQL function `usage_between`."""
        fields = frozenset(self.group_by)
        by_hour = "hour" in fields
        is_owned = bool(fields & OWNERS or self.filters.key_id or self.filters.user_id)
        if fields & LINES or (by_hour and is_owned):
            return "line"
        if by_hour:
            return "slot"
        if self.own_days is not None:
            return "whole_owner_day" if is_owned else "whole_day"
        return "owner_day" if is_owned else "day"

    @property
    def may_need_lines(self) -> bool:
        """Tell if it may need single ledger entries, also where they are not queued for sums."""
        bounds = (self.period.start, self.period.read_end)
        return self.source in {"line", "owner_day", "whole_owner_day"} or any(
            bound.minute % 15 or bound.second or bound.microsecond for bound in bounds
        )


def settled(query: ReportQuery, *, limit: int) -> Select[*tuple[Any, ...]]:
    """Select the groups' names and the sums of settled calls."""
    rows = _usage_between(query)
    tokens_in = rows.c.text_input_tokens + rows.c.image_input_tokens
    tokens_out = rows.c.text_output_tokens + rows.c.image_output_tokens
    sums = {
        "requests": rows.c.requests,
        "images": rows.c.images,
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "cost_nano": rows.c.amount_nano,
        "failed_requests": rows.c.calls - rows.c.requests,
    }
    grouped = _grouped(query, rows, sums)
    return _named(query.tenant_id, query, grouped.subquery("sums"), tuple(sums), limit)


def most_frequent(query: ReportQuery, *, of_each: int) -> Select[*tuple[Any, ...]]:
    """Select the tenants with the most requests for each model, and the number of all of them.

    Its groups are the model asked for and the tenant. Columns: model, name and id of the tenant,
    requests, failed requests, cost, number.
    """
    rows = _usage_between(query)
    sums = {
        "requests": rows.c.requests,
        "failed": rows.c.calls - rows.c.requests,
        "cost_nano": rows.c.amount_nano,
    }
    grouped = _grouped(query, rows, sums).subquery("sums")
    model, tenant = grouped.c.by_requested_model, grouped.c.by_tenant
    order = (grouped.c.requests.desc(), tenant)
    ranked = select(
        grouped,
        func.row_number().over(partition_by=model, order_by=order).label("place"),
        func.count().over(partition_by=model).label("number"),
    ).subquery("ranked")
    found = ranked.c
    return (
        select(
            *(found.by_requested_model, TenantRow.name, cast(found.by_tenant, Text)),
            *(found.requests, found.failed, found.cost_nano, found.number),
        )
        .join(TenantRow, TenantRow.id == found.by_tenant)
        .where(found.place <= of_each)
        .order_by(found.by_requested_model, found.place)
    )


def unsettled(
    tenant_id: UUID | None, query: ReportQuery, condition: TextClause, amount: str, *, limit: int
) -> Select[*tuple[Any, ...]]:
    """Select the groups' names, and number and sum of the reservations that meet a condition."""
    zone = TenantRow.time_zone if query.zone is None else literal(query.zone)
    # Of all tenants, an expression, for which there is no index: a plan for any period would take
    # that of times, and read most calls of a month to find the few in this state.
    at = ReservationRow.admitted_at
    admitted_at = func.coalesce(at) if tenant_id is None else at
    rows = (
        select(
            *(getattr(ReservationRow, name) for name in (*_IDENTIFIERS, *_TEXTS)),
            ReservationRow.served_quality.label("quality"),
            ReservationRow.served_size.label("size"),
            func.usage_status(ReservationRow.state).label("status"),
            literal(1).label("calls"),
            getattr(ReservationRow, amount),
            func.timezone(zone, ReservationRow.admitted_at).label("at_local"),
        )
        .join(TenantRow, TenantRow.id == ReservationRow.tenant_id)
        .where(
            condition,
            ReservationRow.livemode.is_(query.livemode),
            admitted_at >= query.period.start,
            admitted_at < query.period.end,
        )
    )
    if tenant_id is not None:
        rows = rows.where(ReservationRow.tenant_id == tenant_id)
    inside = rows.subquery("calls")
    sums = {"calls": inside.c.calls, amount: inside.c[amount]}
    grouped = _grouped(query, inside, sums)
    return _named(query.tenant_id, query, grouped.subquery("sums"), tuple(sums), limit)


def _usage_between(query: ReportQuery) -> Subquery:
    """Build the call of the SQL function, with constants where the plan depends on them."""
    livemode = "true" if query.livemode else "false"
    tenant = "NULL" if query.tenant_id is None else "CAST(:tenant_id AS uuid)"
    zone = "NULL" if query.summed_zone is None else "CAST(:zone AS text)"
    call = text(
        f"SELECT * FROM usage_between({tenant}, {livemode}, {zone}, "  # noqa: S608 - constants
        f"CAST(:start AS timestamptz), CAST(:end AS timestamptz), '{query.source}')"
    ).bindparams(
        bindparam("start", query.period.start, Timestamp),
        bindparam("end", query.period.read_end, Timestamp),
    )
    if query.tenant_id is not None:
        call = call.bindparams(bindparam("tenant_id", query.tenant_id, Uuid))
    if query.summed_zone is not None:
        call = call.bindparams(bindparam("zone", query.summed_zone, Text))
    return call.columns(
        *(column(name, Uuid) for name in _IDENTIFIERS),
        *(column(name, Text) for name in (*_TEXTS, "quality", "size", "status")),
        *(column(name, BigInteger) for name in _SUMS),
        column("at_local", TIMESTAMP),
    ).subquery("used")


def _grouped(
    query: ReportQuery, rows: FromClause, sums: Mapping[str, ColumnElement[Any]]
) -> Select[*tuple[Any, ...]]:
    """Sum the rows by what identifies a group; names and texts are added to the few results."""
    columns = [_key(field, rows).label(f"by_{field}") for field in query.group_by]
    totals = [func.coalesce(func.sum(sums[name]), 0).label(name) for name in sums]
    grouped = select(*columns, *totals)
    if query.filters.key_id is not None:
        grouped = grouped.where(rows.c.api_key_id == query.filters.key_id)
    if query.filters.user_id is not None:
        grouped = grouped.where(rows.c.user_id == query.filters.user_id)
    if query.own_days is not None:
        grouped = grouped.where(query.own_days.of(rows.c.at_local))
    equal = {
        "served_model": query.filters.model,
        "provider": query.filters.provider,
        "operation": query.filters.operation,
        "credential": query.filters.credential_owner,
    }
    for name, value in equal.items():
        if value is not None:
            # Postgres refuses NUL, and no name contains it.
            grouped = grouped.where(rows.c[name] == value if value.isprintable() else false())
    if query.filters.requested_models is not None:
        grouped = grouped.where(rows.c.requested_model.in_(query.filters.requested_models))
    positions = _positions(columns)
    return grouped.group_by(*positions) if positions else grouped


def _positions(columns: Sequence[object]) -> list[ColumnElement[Any]]:
    return [literal_column(str(index + 1)) for index in range(len(columns))]


def _is_row(
    table: type[ApiKeyRow | TenantUserRow], tenant_id: UUID | None, key: ColumnElement[Any]
) -> ColumnElement[bool]:
    own = true() if tenant_id is None else table.tenant_id == tenant_id
    return (table.id == key) & own


def _key(field: GroupField, rows: FromClause) -> ColumnElement[Any]:
    if field == "day":
        return cast(rows.c.at_local, Date)
    if field in TIMES:
        return func.date_trunc(field, rows.c.at_local)
    found: ColumnElement[Any] = rows.c[IDS.get(field) or PLAIN.get(field) or field]
    return found


def _named(
    tenant_id: UUID | None, query: ReportQuery, grouped: Subquery, sums: tuple[str, ...], limit: int
) -> Select[*tuple[Any, ...]]:
    """Select the groups in their order, times as texts and names beside ids."""
    columns: list[ColumnElement[Any]] = []
    source: FromClause = grouped
    for field in query.group_by:
        key = grouped.c[f"by_{field}"]
        if field in TIMES:
            columns.append(func.to_char(key, TIMES[field]))
        elif field == "key":
            source = source.outerjoin(ApiKeyRow, _is_row(ApiKeyRow, tenant_id, key))
            columns += [cast(key, Text), ApiKeyRow.name.expression]
        elif field == "user":
            source = source.outerjoin(TenantUserRow, _is_row(TenantUserRow, tenant_id, key))
            columns += [TenantUserRow.name.expression, cast(key, Text)]
        elif field == "tenant":
            source = source.join(TenantRow, TenantRow.id == key)
            columns += [TenantRow.name.expression, cast(key, Text)]
        else:
            columns.append(key)
    positions = _positions(columns)
    return (
        select(*columns, *(grouped.c[name] for name in sums))
        .select_from(source)
        .order_by(*positions)
        .limit(limit)
    )
