"""Retention of the ledger and the audit trail by month.

A month of the ledger is archived in one transaction: the sums that invariants and reports need are
kept, its entries are dropped. The audit trail's months are dropped without sums.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from sqlalchemy import func, select, text

from gateway.db.engine import Database, OperatorSession
from gateway.db.listed_calls import count_sent, read_calls, version_served
from gateway.db.money_tables import LedgerRow, ReservationRow
from gateway.db.usage_tables import ArchivedMonthRow
from gateway.errors import Conflict, NotFound

ARCHIVE_SECONDS = 3600
OBSTACLES = {
    "missing": "the ledger has no such month",
    "recent": "it ended less than two months ago",
    "earlier": "an earlier month is kept",
    "open": "the cost of a call in it is unknown: `gateway reconcile list`",
    "unsummed": "entries are waiting for the sums of usage: `gateway maintain`",
    "unchecked": "the books have not been checked beyond it: `gateway maintain`",
}
"""Why a month cannot be archived (the SQL function `archive_obstacle`)."""
OF_LINES = (
    *("at", "tenant_id", "reservation_id", "seq", "kind", "amount_nano", "admitted_at"),
    *("livemode", "api_key_id", "user_id", "requested_model", "served_model", "requests"),
    *("images", "text_input_tokens", "image_input_tokens", "text_output_tokens"),
    "image_output_tokens",
)
OF_CALLS = ("provider", "credential", "provider_calls", "model_version")
EXPORTED = (*OF_LINES, *OF_CALLS)
"""The columns of an exported month; each line also names the provider calls of its generation."""


@dataclass(frozen=True, slots=True)
class LedgerMonth:
    """A month of the ledger, in UTC.

    `obstacle`: why it cannot be archived now; None, if it can, or is. `bytes`: with its indexes;
    None for an archived month. `lines`: None for one that is kept.
    """

    month: date
    is_archived: bool
    obstacle: str | None = None
    bytes: int | None = None
    lines: int | None = None


@dataclass(frozen=True, slots=True)
class Retained:
    """The result of a pass: archived months, dropped months of the audit trail.

    `put_off`: the obstacle to archiving the next month that is due.
    """

    archived: tuple[date, ...] = ()
    put_off: str | None = None
    audit_months: int = 0


async def list_months(session: OperatorSession) -> list[LedgerMonth]:
    """List the months of the ledger, archived ones first, in order."""
    archived = await session.scalars(select(ArchivedMonthRow).order_by(ArchivedMonthRow.month))
    months = [LedgerMonth(row.month, is_archived=True, lines=row.lines) for row in archived]
    kept = await session.execute(
        text("SELECT month, bytes, archive_obstacle(month) AS obstacle FROM ledger_months()")
    )
    return months + [
        LedgerMonth(row.month, is_archived=False, obstacle=row.obstacle, bytes=row.bytes)
        for row in kept
    ]


async def archive_month(database: Database, month: date) -> None:
    """Archive one month: keep its sums, drop its entries.

    Raises:
        NotFound: the ledger has no such month.
        Conflict: it cannot be archived now; the message says why (`month_not_archived`).
        DatabaseUnavailable: Postgres is away, or a long query reads the ledger.
    """
    obstacle = await _archive(database, month)
    if obstacle == "missing":
        raise NotFound(f"The ledger has no month {month:%Y-%m}.", param="month")
    if obstacle is not None:
        raise Conflict(
            f"{month:%Y-%m} cannot be archived: {OBSTACLES[obstacle]}.", code="month_not_archived"
        )


async def retain(
    database: Database, *, ledger_months: int | None, audit_months: int | None
) -> Retained:
    """Archive the ledger's months that ended so long ago; drop the audit trail's. None: keep all.

    Raises:
        DatabaseUnavailable: Postgres is away, or a long query reads the table.
    """
    archived: list[date] = []
    obstacle = None
    while ledger_months is not None and obstacle is None:
        month = await _oldest_due(database, ledger_months)
        if month is None:
            break
        obstacle = await _archive(database, month)
        if obstacle is None:
            archived.append(month)
    dropped = 0
    if audit_months is not None:
        rows = await database.call("SELECT drop_audit_months(:months)", {"months": audit_months})
        dropped = int(rows[0][0])
    return Retained(tuple(archived), obstacle, dropped)


async def export_month(session: OperatorSession, month: date) -> AsyncIterator[Sequence[object]]:
    """Yield the entries of a month, as `EXPORTED`, by tenant and call.

    Raises:
        NotFound: the ledger has no such month, or it is archived.
    """
    bounds = await session.execute(
        text("SELECT lowest, below FROM ledger_months() WHERE month = :month"), {"month": month}
    )
    found = bounds.one_or_none()
    if found is None:
        raise NotFound(f"The ledger has no entries of {month:%Y-%m}.", param="month")
    await _allow_time(session)
    query = (
        select(
            *(getattr(LedgerRow, name) for name in OF_LINES),
            *(ReservationRow.provider, ReservationRow.credential, ReservationRow.calls),
        )
        .join(
            ReservationRow,
            (ReservationRow.tenant_id == LedgerRow.tenant_id)
            & (ReservationRow.id == LedgerRow.reservation_id),
        )
        .where(LedgerRow.reservation_id >= found.lowest, LedgerRow.reservation_id < found.below)
        .order_by(LedgerRow.tenant_id, LedgerRow.reservation_id, LedgerRow.seq)
    )
    async for *line, listed in await session.stream(query):
        calls = read_calls(listed)
        yield (*line, count_sent(calls), version_served(calls))


async def _oldest_due(database: Database, months: int) -> date | None:
    rows = await database.call(
        "SELECT min(month) FROM ledger_months()"
        " WHERE ends_at + make_interval(months => :months) <= now()",
        {"months": months},
    )
    found: date | None = rows[0][0]
    return found


async def _archive(database: Database, month: date) -> str | None:
    async with database.operator() as session:
        await _allow_time(session)
        found: str | None = await session.scalar(select(func.archive_month(month)))
        return found


async def _allow_time(session: OperatorSession) -> None:
    await session.execute(text(f"SET LOCAL statement_timeout = '{ARCHIVE_SECONDS}s'"))


def parse_month(value: str) -> date | None:
    """Parse a month such as 2026-01; None if it is none."""
    try:
        return datetime.strptime(value, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        return None
