"""How long the request log is kept: in days, each of which is a partition that is dropped whole."""

from gateway.db.engine import Database


async def keep(database: Database, *, days: int) -> int:
    """Make the partitions of the next days, and drop those older than `days`. Returns how many.

    Raises:
        DatabaseUnavailable: Postgres is away, or a long reader is in the way.
    """
    rows = await database.call("SELECT keep_request_log(:days)", {"days": days})
    return int(rows[0][0])
