"""Warm-up of a worker, so that its first requests need not wait for it."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from gateway.billing.ledger import add_missing_months
from gateway.billing.prices import Prices
from gateway.billing.reservations import Reservations
from gateway.db.engine import Database, DatabaseUnavailable


async def warm(
    database: Database,
    reservations: Reservations,
    prices: Prices,
    look_up: Callable[[], Awaitable[None]],
) -> None:
    """Create missing partitions, connect, prepare the money path's statements, load the prices.

    `look_up` prepares the look-up of keys.

    A database that is unavailable at this moment is reported by /ready.
    """
    with suppress(DatabaseUnavailable):
        await add_missing_months(database)
    with suppress(DatabaseUnavailable):
        await database.warm()
        await reservations.warm()
        await look_up()
        await prices.load()
