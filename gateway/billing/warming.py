"""Warm-up of a worker, so that its first requests need not wait for it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from gateway.billing.ledger import add_missing_months
from gateway.db.engine import Database, DatabaseUnavailable

Step = Callable[[], Awaitable[None]]


class WarmUp:
    """Creates missing partitions, then runs each step: connections, statements, prices.

    A worker is not ready before `is_done`. If Postgres is unavailable at start, readiness probes
    run the warm-up again.
    """

    def __init__(self, database: Database, *steps: Step) -> None:
        self._database = database
        self._steps = steps
        self._running: asyncio.Task[None] | None = None
        self.is_done = False

    async def run(self) -> None:
        """Run it once."""
        # Apart: a long query that reads a table may delay its next partition, and no request.
        with suppress(DatabaseUnavailable):
            await add_missing_months(self._database)
        with suppress(DatabaseUnavailable):
            for step in self._steps:
                await step()
            self.is_done = True

    async def again(self) -> bool:
        """Run it again if need be, once at a time; return `is_done`.

        Giving up the wait does not stop it.
        """
        if not self.is_done:
            if self._running is None or self._running.done():
                self._running = asyncio.create_task(self.run())
            await asyncio.shield(self._running)
        return self.is_done

    async def close(self) -> None:
        """Stop a warm-up that is under way."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
