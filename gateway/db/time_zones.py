"""Known time zones: those that both Python and this Postgres have."""

from functools import cache
from zoneinfo import available_timezones

from sqlalchemy import text

from gateway.db.engine import OperatorSession, TenantSession
from gateway.errors import InvalidRequest

NO_ZONES = frozenset({"localtime", "Factory"})
"""Names that depend on the machine's own configuration."""


async def check_time_zone(session: TenantSession | OperatorSession, name: str) -> None:
    """Raise `InvalidRequest` for a zone that Python or Postgres does not know.

    Python first: Postgres would fail on an invalid text, such as one with a null character.
    """
    known = name in _zones() and await session.scalar(
        text("SELECT 1 FROM pg_timezone_names WHERE name = :name"), {"name": name}
    )
    if not known:
        raise InvalidRequest(
            f"{name!r} is not a time zone such as Europe/Madrid.", param="time_zone"
        )


@cache  # reading the machine's folders of zones blocks all other requests
def _zones() -> frozenset[str]:
    return frozenset(available_timezones() - NO_ZONES)
