"""Which time zones there are: those that Python and this Postgres both know."""

from functools import cache
from zoneinfo import available_timezones

from sqlalchemy import text

from gateway.db.engine import OperatorSession, TenantSession
from gateway.errors import InvalidRequest

NO_ZONES = frozenset({"localtime", "Factory"})
"""The machine's own, and the one of a machine that was given none."""


async def check_time_zone(session: TenantSession | OperatorSession, name: str) -> None:
    """Raise `InvalidRequest` for a zone that Python or Postgres does not know.

    Python first: Postgres would choke on a text that is none, such as one with a null character.
    """
    known = name in _zones() and await session.scalar(
        text("SELECT 1 FROM pg_timezone_names WHERE name = :name"), {"name": name}
    )
    if not known:
        raise InvalidRequest(
            f"{name!r} is not a time zone such as Europe/Madrid.", param="time_zone"
        )


@cache  # walking through the machine's folders of them holds up every other request
def _zones() -> frozenset[str]:
    return frozenset(available_timezones() - NO_ZONES)
