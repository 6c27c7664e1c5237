"""How long the request log is kept: in days, each of which is a partition that is dropped whole."""

from datetime import timedelta

from sqlalchemy import text

from gateway.db.engine import Database, OperatorSession


async def keep(database: Database, *, days: int) -> int:
    """Make the partitions of the next days, and drop those older than `days`. Returns how many.

    Raises:
        DatabaseUnavailable: Postgres is away, or a long reader is in the way.
    """
    rows = await database.call("SELECT keep_request_log(:days)", {"days": days})
    return int(rows[0][0])


async def forget_deleted(session: OperatorSession, *, within: timedelta) -> None:
    """Delete what tenants that were deleted `within` this time have left in the log."""
    await session.execute(
        text(
            "SELECT forget_requests(id) FROM tenant"
            " WHERE deleted_at > now() - CAST(:within AS interval)"
        ),
        {"within": within},
    )
