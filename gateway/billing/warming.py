"""What the first requests would wait for, done before they come."""

from contextlib import suppress

from gateway.billing.prices import Prices
from gateway.billing.reservations import Reservations
from gateway.db.engine import Database, DatabaseUnavailable


async def warm(database: Database, reservations: Reservations, prices: Prices) -> None:
    """Open connections, prepare the money path's statements, and load the prices.

    A database that goes away at this moment is one for /ready to report.
    """
    with suppress(DatabaseUnavailable):
        await database.warm()
        await reservations.warm()
        await prices.load()
