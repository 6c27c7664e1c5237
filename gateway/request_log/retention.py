"""Retention of the request log, in days; each day is a partition that is dropped whole."""

from datetime import datetime

from sqlalchemy import text

from gateway.db.engine import Database, OperatorSession


async def keep(database: Database, *, days: int) -> int:
    """Create the partitions of the next days, and drop those older than `days`; count them.

    Raises:
        DatabaseUnavailable: Postgres is away, or a long query holds a lock.
    """
    rows = await database.call("SELECT keep_request_log(:days)", {"days": days})
    return int(rows[0][0])


async def forget_deleted(session: OperatorSession, *, since: datetime) -> None:
    """Delete the rows of tenants that were deleted after `since`."""
    await session.execute(
        text("SELECT forget_requests(id) FROM tenant WHERE deleted_at > :since"), {"since": since}
    )
