"""Keep the sums of usage complete: reports read them instead of the ledger.

Reports are right at any time, since they add the lines that are not in the sums yet; the fewer
these are, the faster they are.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select, text

from gateway.db.engine import Database, OperatorSession
from gateway.db.usage_tables import UsagePendingRow, UsageStaleRow

BATCH = 2_000
"""Lines in one commit: a fraction of a second."""
REBUILD_TIMEOUT_MS = 600_000


async def roll_up(database: Database) -> int:
    """Add queued ledger lines to the sums until none is left; return their number."""
    count, found = 0, BATCH
    while found == BATCH:
        rows = await database.call("SELECT roll_up_usage(:limit)", {"limit": BATCH})
        found = int(rows[0][0])
        count += found
    return count


async def rebuild_moved_days(database: Database) -> int:
    """Make the days of tenants that changed their time zone anew; return the tenants' number."""
    async with database.operator() as session:
        moved = (await session.scalars(select(UsageStaleRow.tenant_id))).all()
    for tenant_id in moved:
        async with database.operator() as session:
            await _allow_time(session)
            await session.execute(select(func.rebuild_usage_days(tenant_id)))
    return len(moved)


async def recompute(session: OperatorSession, tenant_id: UUID) -> int:
    """Discard a tenant's sums and queue its ledger lines again; return their number."""
    await _allow_time(session)
    return int(await session.scalar(select(func.recompute_usage(tenant_id))) or 0)


@dataclass(frozen=True, slots=True)
class Difference:
    """Sums of a tenant, live or test, that are not its ledger. `grain`: slot, day or owner_day."""

    tenant: str
    livemode: bool
    grain: str


async def differences(session: OperatorSession) -> list[Difference]:
    """Compare every sum with the ledger, which reads all of it."""
    await _allow_time(session)
    rows = await session.execute(
        text(
            "SELECT t.name, u.livemode, u.grain FROM usage_break u"
            " JOIN tenant t ON t.id = u.tenant_id ORDER BY 1, 2, 3"
        )
    )
    return [Difference(row.name, row.livemode, row.grain) for row in rows]


async def count_pending(session: OperatorSession) -> int:
    """Return the number of ledger lines that are not in the sums yet."""
    return int(await session.scalar(select(func.count()).select_from(UsagePendingRow)) or 0)


async def _allow_time(session: OperatorSession) -> None:
    await session.execute(text(f"SET LOCAL statement_timeout = {REBUILD_TIMEOUT_MS}"))
