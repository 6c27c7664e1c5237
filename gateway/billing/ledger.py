"""The ledger's housekeeping: what time does to reservations, and whether everything agrees."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args
from uuid import UUID

from sqlalchemy import func, literal_column, select, text

from gateway.db.engine import Database, OperatorSession
from gateway.db.money_tables import ReservationRow
from gateway.db.pages import Page, page_of
from gateway.db.tables import TenantRow

OpenState = Literal["held", "unknown", "estimated"]
OPEN_STATES: tuple[OpenState, ...] = get_args(OpenState)
# As the table calls them; written into the statements, for only then a partial index is used.
_STATES: dict[OpenState, str] = {"held": "held", "unknown": "unknown", "estimated": "posted_est"}
INVARIANT_SECONDS = 1800


@dataclass(frozen=True, slots=True)
class InvariantBreak:
    """One row of the view `invariant_break`: what is wrong, and of which row."""

    what: str
    id: str


@dataclass(frozen=True, slots=True)
class OpenSum:
    """How many calls of one mode are in one state, what they hold or are put at, since when."""

    state: OpenState
    livemode: bool
    count: int
    amount_nano: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class OpenCall:
    """One call whose real cost is not known, by the id of its generation."""

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
    """Mark held reservations past their deadline as unknown; never void them. Returns how many."""
    rows = await database.call("SELECT expire_reservations(:limit)", {"limit": limit})
    return int(rows[0][0])


async def forget_claims(database: Database, *, after_seconds: int, limit: int) -> int:
    """Forget idempotency keys that are older than this, and what they were answered with.

    Takes `limit` in each commit until there are no more; returns how many that were.
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


async def alert_house_budgets(database: Database) -> None:
    """Note which thresholds the house's budgets have reached; those of tenants note theirs alone.

    The house's are in shards, of which no single one knows how much was spent.
    """
    await database.call("SELECT alert_house_budgets()", {})


async def sum_open(session: OperatorSession) -> list[OpenSum]:
    """The calls whose real cost is not known, by state and mode; also where there are none."""
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
    """Calls in this state, newest first, from the one behind `after` on."""
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
    """What does not agree; nothing, ever. Reads the whole ledger, and may take minutes.

    Raises:
        DatabaseUnavailable: Postgres is away, or it took longer than it may.
    """
    async with database.operator() as session:
        await session.execute(
            text("SELECT set_config('statement_timeout', :value, true)"),
            {"value": f"{timeout_seconds}s"},
        )
        rows = await session.execute(
            text("SELECT what, id FROM invariant_break LIMIT :limit"), {"limit": limit}
        )
        return [InvariantBreak(row.what, row.id) for row in rows]
