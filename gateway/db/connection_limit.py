"""The number of connections that Postgres admits."""

from sqlalchemy import text

from gateway.db.engine import OperatorSession

# `reserved_connections` exists since Postgres 16.
_LIMIT = text(
    "SELECT current_setting('max_connections')::int"
    " - current_setting('superuser_reserved_connections')::int"
    " - coalesce(current_setting('reserved_connections', true)::int, 0)"
)


async def connection_limit(session: OperatorSession) -> int:
    """Return the number of connections for users other than superusers, of all clients together."""
    return int((await session.execute(_LIMIT)).scalar_one())
