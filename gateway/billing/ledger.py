"""Ledger maintenance: expiry of reservations, and the check of its invariants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args
from uuid import UUID

from sqlalchemy import func, literal_column, select, text

from gateway.db.engine import Database, OperatorSession
from gateway.db.money_tables import ReservationRow
from gateway.db.pages import Page, page_of
from gateway.db.tables import SweepRow, TenantRow

OpenState = Literal["held", "unknown", "estimated"]
OPEN_STATES: tuple[OpenState, ...] = get_args(OpenState)
# States as in the table; literals, because Postgres uses the partial index only with them.
_STATES: dict[OpenState, str] = {"held": "held", "unknown": "unknown", "estimated": "posted_est"}
INVARIANT_SECONDS = 1800
CHECKS = "invariants"
"""The sweep that checks the books."""
WHOLE_EVERY = timedelta(days=7)
INVARIANTS = (
    "I1 budget is not the sum of its reservations",
    "I1 house budget is not the sum of its reservations",
    "I1 budget overspent",
    "I1 house budget overspent",
    "I2 not exactly one hold line, or none that ends it",
    "I3 lines do not add up to the final cost",
    "I3 archived lines do not add up to the final costs",
    "I5 held past its deadline",
    "I5 unknown for more than a day",
)
"""Those of the view `ledger_break`."""
_NEW = "SELECT what, id FROM new_breaks(false)"
_NEW_REMEMBERED = "SELECT what, id FROM new_breaks(true)"
USAGE_INVARIANT = "I6 usage is not the ledger"


@dataclass(frozen=True, slots=True)
class InvariantBreak:
    """One row of the view `invariant_break`: the broken invariant and the id of the row."""

    what: str
    id: str


@dataclass(frozen=True, slots=True)
class OpenSum:
    """The number of calls of one mode in one state, their total amount, and the oldest."""

    state: OpenState
    livemode: bool
    count: int
    amount_nano: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class OpenCall:
    """One call whose actual cost is unknown, by its generation id."""

    id: UUID
    tenant_id: UUID
    tenant_name: str
    livemode: bool
    state: OpenState
    provider: str
    served_model: str
    outcome: str | None
    amount_nano: int
    admitted_at: datetime
    deadline_at: datetime


async def expire_late(database: Database, *, limit: int) -> int:
    """Mark held reservations past their deadline as unknown, never void; return their number."""
    rows = await database.call("SELECT expire_reservations(:limit)", {"limit": limit})
    return int(rows[0][0])


async def forget_claims(database: Database, *, after_seconds: int, limit: int) -> int:
    """Delete idempotency keys older than this, with their answers; return their number.

    Deletes `limit` per commit until none is left.
    """
    count, found = 0, limit
    while found == limit:
        rows = await database.call(
            "SELECT forget_idempotency_keys(:after, :limit)",
            {"after": after_seconds, "limit": limit},
        )
        found = int(rows[0][0])
        count += found
    return count


async def add_missing_months(database: Database) -> int:
    """Create the partitions of the coming months; return the number of those that were missing.

    Raises:
        DatabaseUnavailable: Postgres is away, or a long transaction holds a lock.
    """
    rows = await database.call("SELECT add_missing_months()")
    return int(rows[0][0])


async def alert_house_budgets(database: Database) -> None:
    """Record which thresholds the operator's budgets have reached.

    Tenants' budgets record theirs at settlement. The operator's are sharded, and no single shard
    knows the total spent.
    """
    await database.call("SELECT alert_house_budgets()", {})


async def sum_open(session: OperatorSession) -> list[OpenSum]:
    """Sum the calls of unknown actual cost by state and mode, with zeros for empty groups."""
    sums = []
    for state in OPEN_STATES:
        rows = await session.execute(
            select(
                ReservationRow.livemode,
                func.count(),
                func.sum(func.coalesce(ReservationRow.final_nano, ReservationRow.held_nano)),
                func.min(ReservationRow.admitted_at),
            )
            .where(ReservationRow.state == literal_column(f"'{_STATES[state]}'"))
            .group_by(ReservationRow.livemode)
        )
        found = {row[0]: row for row in rows}
        for livemode in (True, False):
            _, count, amount_nano, oldest = found.get(livemode, (livemode, 0, 0, None))
            sums.append(OpenSum(state, livemode, count, int(amount_nano), oldest))
    return sums


async def list_open(
    session: OperatorSession, *, state: OpenState, limit: int, after: UUID | None = None
) -> Page[OpenCall]:
    """List one page of the calls in this state, newest first, after `after`."""
    query = (
        select(ReservationRow, TenantRow.name)
        .join(TenantRow, TenantRow.id == ReservationRow.tenant_id)
        .where(ReservationRow.state == literal_column(f"'{_STATES[state]}'"))
        .order_by(ReservationRow.id.desc())
        .limit(limit + 1)
    )
    if after is not None:
        query = query.where(ReservationRow.id < after)
    found = await session.execute(query)
    return page_of([_open_call(row, name, state) for row, name in found], limit)


def _open_call(row: ReservationRow, tenant_name: str, state: OpenState) -> OpenCall:
    return OpenCall(
        id=row.id,
        tenant_id=row.tenant_id,
        tenant_name=tenant_name,
        livemode=row.livemode,
        state=state,
        provider=row.provider,
        served_model=row.served_model,
        outcome=row.outcome,
        amount_nano=row.held_nano if row.final_nano is None else row.final_nano,
        admitted_at=row.admitted_at,
        deadline_at=row.deadline_at,
    )


async def invariant_breaks(
    database: Database, *, limit: int = 100, timeout_seconds: int = INVARIANT_SECONDS
) -> Sequence[InvariantBreak]:
    """List broken invariants; the list should be empty. Reads the whole ledger for minutes.

    Raises:
        DatabaseUnavailable: Postgres is away, or the check timed out.
    """
    async with database.operator() as session:
        return await _breaks(session, "TABLE invariant_break", limit, timeout_seconds)


async def new_breaks(
    database: Database,
    *,
    remember: bool,
    limit: int = 100,
    timeout_seconds: int = INVARIANT_SECONDS,
) -> Sequence[InvariantBreak] | None:
    """List the invariants that are broken by what is new since the last check that found none.

    `remember`: without a break, the next check begins where this one ends. None: everything must be
    checked, for the first time or, by the caller that remembers, again after a week.

    Raises:
        DatabaseUnavailable: Postgres is away, or the check timed out.
    """
    async with database.operator() as session:
        row = await session.get_one(SweepRow, CHECKS)
        oldest = datetime.now(UTC) - WHOLE_EVERY
        if row.compared_to is None or row.whole_at is None:
            return None
        if remember and row.whole_at < oldest:
            return None
        call = _NEW_REMEMBERED if remember else _NEW
        return await _breaks(session, call, limit, timeout_seconds)


async def check_all(
    database: Database, *, progress: Callable[[str], None], remember: bool, limit: int = 100
) -> Sequence[InvariantBreak]:
    """Check every invariant over the whole ledger, one after the other, each named to `progress`.

    `remember`: without a break, later checks read only what is new.

    Raises:
        DatabaseUnavailable: Postgres is away, or an invariant took longer than half an hour.
    """
    found: list[InvariantBreak] = []
    for what in INVARIANTS:
        progress(what)
        query = f"SELECT what, id FROM ledger_break WHERE what = '{what}'"  # noqa: S608 - a constant
        async with database.operator() as session:
            found += await _breaks(session, query, limit, INVARIANT_SECONDS)
    progress(USAGE_INVARIANT)
    query = f"SELECT what, id FROM invariant_break WHERE what NOT IN {INVARIANTS}"  # noqa: S608 - constants
    async with database.operator() as session:
        found += await _breaks(session, query, limit, INVARIANT_SECONDS)
        if remember and not found:
            await session.execute(text("SELECT remember_checked(NULL, '{}')"))
    return found


async def _breaks(
    session: OperatorSession, query: str, limit: int, timeout_seconds: int
) -> list[InvariantBreak]:
    await session.execute(
        text("SELECT set_config('statement_timeout', :value, true)"),
        {"value": f"{timeout_seconds}s"},
    )
    rows = await session.execute(text(f"{query} LIMIT :limit"), {"limit": limit})
    return [InvariantBreak(row.what, row.id) for row in rows]
