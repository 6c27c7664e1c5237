"""The ledger's housekeeping: what time does to reservations, and whether everything agrees."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select, text

from gateway.db.engine import Database, OperatorSession
from gateway.db.tables import ReservationRow


@dataclass(frozen=True, slots=True)
class InvariantBreak:
    """One row of the view `invariant_break`: what is wrong, and of which row."""

    what: str
    id: str


async def expire_late(database: Database, *, limit: int) -> int:
    """Mark held reservations past their deadline as unknown; never void them. Returns how many."""
    rows = await database.call("SELECT expire_reservations(:limit)", {"limit": limit})
    return int(rows[0][0])


async def estimate_unknown(database: Database, *, after_seconds: int, limit: int) -> int:
    """Post the full hold of reservations unknown for so long, flagged. Returns how many."""
    rows = await database.call(
        "SELECT estimate_unknown(:after, :limit)",
        {"after": timedelta(seconds=after_seconds), "limit": limit},
    )
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


async def count_open(session: OperatorSession) -> dict[str, int]:
    """How many reservations are not settled yet, by state."""
    rows = await session.execute(
        select(ReservationRow.state, func.count())
        .where(ReservationRow.state.in_(("held", "unknown")))
        .group_by(ReservationRow.state)
    )
    return dict(rows.all())


async def invariant_breaks(database: Database, *, limit: int = 100) -> Sequence[InvariantBreak]:
    """What does not agree; nothing, ever. Reads the whole ledger, and may take minutes."""
    async with database.operator() as session:
        await session.execute(text("SET LOCAL statement_timeout = '30min'"))
        rows = await session.execute(
            text("SELECT what, id FROM invariant_break LIMIT :limit"), {"limit": limit}
        )
        return [InvariantBreak(row.what, row.id) for row in rows]
