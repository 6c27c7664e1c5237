"""The clock: late reservations become unknown, unknown ones estimates, old images go."""

import asyncio
import time

import structlog

from gateway import telemetry
from gateway.billing import ledger
from gateway.bootstrap import Gateway
from gateway.db.engine import DatabaseUnavailable
from gateway.errors import StorageFailed
from gateway.images.retention import expired_images, mark_deleted

BATCH = 200
INVARIANT_INTERVAL_SECONDS = 3600.0
log = structlog.get_logger(__name__)


class Sweeper:
    """Runs in every worker; the reservations each of them takes are skipped by the others."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._task: asyncio.Task[None] | None = None
        self._invariants_checked = time.monotonic()

    def start(self) -> None:
        """Begin to sweep at the configured interval."""
        self._task = asyncio.create_task(self._sweep_for_ever(), name="sweeper")

    async def close(self) -> None:
        """Stop sweeping."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def sweep(self) -> None:
        """Do once what there is to do."""
        database = self._gateway.database
        late = await ledger.expire_late(database, limit=BATCH)
        estimated = await ledger.estimate_unknown(
            database, after_seconds=self._gateway.settings.estimate_after_seconds, limit=BATCH
        )
        if late:
            telemetry.alarms_total.labels("reservation_expired").inc(late)
            log.warning("reservations_expired", count=late)
        if estimated:
            telemetry.alarms_total.labels("outcome_estimated").inc(estimated)
            log.warning("reservations_estimated", count=estimated)
        await self._measure()
        await self._delete_expired_images()

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._gateway.settings.sweep_interval_seconds)
            try:
                await self.sweep()
            except (DatabaseUnavailable, StorageFailed) as error:
                log.warning("sweep_put_off", reason=error.code)
            except Exception:  # top: one failed sweep is reported; the next one must still come
                log.exception("sweep_failed")

    async def _measure(self) -> None:
        database = self._gateway.database
        async with database.operator() as session:
            counts = await ledger.count_open(session)
        for state in ("held", "unknown"):
            telemetry.holds_open.labels(state).set(counts.get(state, 0))
        if time.monotonic() - self._invariants_checked > INVARIANT_INTERVAL_SECONDS:
            self._invariants_checked = time.monotonic()
            breaks = await ledger.invariant_breaks(database)
            telemetry.invariant_breaks.set(len(breaks))
            for found in breaks:
                telemetry.alarm("invariant_break", what=found.what, id=found.id)

    async def _delete_expired_images(self) -> None:
        """Files first: a row whose file is gone is swept again, a file without a row never.

        No transaction is open while the store works; two sweepers at one image do no harm.
        """
        database = self._gateway.database
        async with database.operator() as session:
            expired = await expired_images(session, limit=BATCH)
        if not expired:
            return
        for image in expired:
            await self._gateway.store.delete(image.path)
        async with database.operator() as session:
            await mark_deleted(session, expired)
