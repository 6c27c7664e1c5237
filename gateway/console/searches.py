"""Searches in logs by columns without an index: their usual start, and those that take too long."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import DBAPIError

from gateway.billing.usage import QUERY_CANCELED
from gateway.errors import InvalidRequest

SEARCHED = timedelta(hours=24)
"""The time that a search without a start goes back from its end."""
SEARCHED_NOTE = (
    "Without a start or a tenant, these filters search only the 24 hours before the end. Choose "
    "an earlier start to search further back."
)


def usual_start(end: datetime | None) -> datetime:
    """Return the start of a search that names none."""
    return (end or datetime.now(UTC)) - SEARCHED


@asynccontextmanager
async def searching() -> AsyncIterator[None]:
    """Refuse a search beyond Postgres' time limit: the database answers, the search is too wide.

    Raises:
        InvalidRequest: `search_too_large`.
    """
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != QUERY_CANCELED:
            raise
        raise InvalidRequest(
            "This search takes too long. Narrow it: choose a later start, an earlier end, or one "
            "tenant.",
            code="search_too_large",
            param="start",
        ) from error
