"""Known time zones: those that both Python and this Postgres have."""

from functools import cache
from zoneinfo import available_timezones

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from gateway.db.engine import OperatorSession, TenantSession
from gateway.errors import InvalidRequest

NO_ZONES = frozenset({"localtime", "Factory"})
"""Names that depend on the machine's own configuration."""
INVALID_VALUE = "22023"


async def check_time_zone(session: TenantSession | OperatorSession, name: str) -> None:
    """Raise `InvalidRequest` for a zone that Python or Postgres does not know.

    Python first: Postgres would fail on an invalid text, such as one with a null character, and
    takes abbreviations for zones. Postgres is asked to use the zone: its list of all of them costs
    it 23 ms.
    """
    if name not in _zones() or not await _can_use(session, name):
        raise InvalidRequest(
            f"{name!r} is not a time zone such as Europe/Madrid.", param="time_zone"
        )


async def _can_use(session: TenantSession | OperatorSession, name: str) -> bool:
    try:
        async with session.begin_nested():
            await session.execute(
                text("SELECT now() AT TIME ZONE CAST(:name AS text)"), {"name": name}
            )
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != INVALID_VALUE:
            raise
        return False
    return True


@cache  # reading the machine's folders of zones blocks all other requests
def _zones() -> frozenset[str]:
    return frozenset(available_timezones() - NO_ZONES)
