"""The clock: late reservations become unknown, unknown ones estimates, old images go."""

import asyncio
import time
from datetime import timedelta

import structlog
from sqlalchemy import func, select, update

from gateway import telemetry
from gateway.bootstrap import Gateway
from gateway.db.engine import DatabaseUnavailable
from gateway.db.tables import ImageRow, ReservationRow
from gateway.errors import StorageFailed

BATCH = 200
INVARIANT_INTERVAL_SECONDS = 3600.0
log = structlog.get_logger(__name__)
_OPEN_BY_STATE = (
    select(ReservationRow.state, func.count().label("count"))
    .where(ReservationRow.state.in_(("held", "unknown")))
    .group_by(ReservationRow.state)
)


class Sweeper:
    """Runs in every worker; the rows each of them takes are skipped by the others."""

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
        settings = self._gateway.settings
        late = await database.call("SELECT expire_reservations(:n)", {"n": BATCH})
        estimated = await database.call(
            "SELECT estimate_unknown(:after, :n)",
            {"after": timedelta(seconds=settings.estimate_after_seconds), "n": BATCH},
        )
        if late[0][0]:
            telemetry.alarms_total.labels("reservation_expired").inc(late[0][0])
            log.warning("reservations_expired", count=late[0][0])
        if estimated[0][0]:
            telemetry.alarms_total.labels("outcome_estimated").inc(estimated[0][0])
            log.warning("reservations_estimated", count=estimated[0][0])
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
            rows = await session.execute(_OPEN_BY_STATE)
            counts = dict(rows.tuples().all())
        for state in ("held", "unknown"):
            telemetry.holds_open.labels(state).set(counts.get(state, 0))
        if time.monotonic() - self._invariants_checked > INVARIANT_INTERVAL_SECONDS:
            self._invariants_checked = time.monotonic()
            breaks = await database.call("SELECT count(*) FROM invariant_break")
            telemetry.invariant_breaks.set(breaks[0][0])

    async def _delete_expired_images(self) -> None:
        """Files first: a row whose file is gone is swept again, a file without a row never.

        No transaction is open while the store works; two sweepers at one image do no harm.
        """
        database = self._gateway.database
        async with database.operator() as session:
            rows = await session.execute(
                select(ImageRow.id, ImageRow.path)
                .where(ImageRow.deleted_at.is_(None), ImageRow.expires_at < func.now())
                .order_by(ImageRow.expires_at)
                .limit(BATCH)
            )
            expired = rows.tuples().all()
        if not expired:
            return
        for _, path in expired:
            await self._gateway.store.delete(path)
        async with database.operator() as session:
            await session.execute(
                update(ImageRow)
                .where(ImageRow.id.in_([image_id for image_id, _ in expired]))
                .values(deleted_at=func.now())
            )
