"""Warm-up of a worker, so that its first requests need not wait for it."""

from contextlib import suppress

from gateway.billing.prices import Prices
from gateway.billing.reservations import Reservations
from gateway.db.engine import Database, DatabaseUnavailable


async def warm(database: Database, reservations: Reservations, prices: Prices) -> None:
    """Open connections, prepare the money path's statements, and load the prices.

    A database that is unavailable at this moment is reported by /ready.
    """
    with suppress(DatabaseUnavailable):
        await database.warm()
        await reservations.warm()
        await prices.load()
