"""Retention of the request log, in days; each day is a partition that is dropped whole."""

from gateway.db.engine import Database


async def keep(database: Database, *, days: int) -> int:
    """Create the partitions of the next days, and drop those older than `days`; count them.

    Raises:
        DatabaseUnavailable: Postgres is away, or a long query holds a lock.
    """
    rows = await database.call("SELECT keep_request_log(:days)", {"days": days})
    return int(rows[0][0])
