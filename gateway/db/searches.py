"""Searches beyond the time limit of a statement, told from a database that is away."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import DBAPIError

from gateway.db.engine import QUERY_CANCELED
from gateway.errors import InvalidRequest


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
            "This search takes too long. Narrow it: choose a later start or an earlier end.",
            code="search_too_large",
            param="start",
        ) from error
