"""Keeps paid images: in the store, or in the spool until the store accepts them."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError

from gateway import telemetry
from gateway.billing.settlement import StoredFile
from gateway.db.engine import Database, DatabaseUnavailable
from gateway.domain import StorageState
from gateway.errors import ConfigurationError, NotFound, StorageFailed
from gateway.library.image_files import ImageFiles
from gateway.library.retention import delete_files, expire_at_once
from gateway.library.spool import Spool, SpooledImage, SpoolFull
from gateway.library.storage import ImageStore
from gateway.library.store_health import StoreHealth
from gateway.vault.sealing import SealBroken

PUT_SECONDS = 20.0
BACKOFF_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0)
LINGER_SECONDS = 60.0
MAX_LINGERING_BYTES = 268_435_456
"""Bound on the memory for images that neither store nor spool has accepted; others are lost."""
CLOSE_SECONDS = 5.0
"""Time at shutdown for a last attempt to keep pending images."""
DRAINED_AT_ONCE = 4
ROOM_AGAIN = 0.9
"""The spool counts as full until less than this share of it is used."""
NOT_SPOOLED = (SpoolFull, DatabaseUnavailable, SQLAlchemyError, ConfigurationError, SealBroken)
Files = Sequence[tuple[StoredFile, bytes]]
log = structlog.get_logger(__name__)


class Keeper:
    """Stores images, spools those that the store does not accept, and drains the spool."""

    def __init__(
        self,
        database: Database,
        store: ImageStore,
        spool: Spool,
        *,
        retry_seconds: float,
    ) -> None:
        self._database = database
        self.store = store
        self.spool = spool
        self.health = StoreHealth(store)
        self.files = ImageFiles(store, spool, self.health)
        self._retry_seconds = retry_seconds
        self._lingering: set[asyncio.Task[None]] = set()
        self._lingering_bytes = 0
        self._closing = asyncio.Event()

    async def close(self) -> None:
        """Try a last time to keep pending images; lost ones are reported."""
        self._closing.set()
        if not self._lingering:
            return
        _, late = await asyncio.wait(self._lingering, timeout=CLOSE_SECONDS)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def keep(
        self, generation_id: UUID, tenant_id: UUID, files: Files, *, wants_link: bool
    ) -> StorageState:
        """Store the images of one generation, or spool them.

        The store is retried, with backoff, only if a link is wanted: other answers contain the
        bytes and need not wait. After a cancellation it continues until the keeper closes.
        """
        try:
            return await self._keep(generation_id, tenant_id, files, wants_link=wants_link)
        except asyncio.CancelledError:
            self._linger_later(generation_id, tenant_id, files)
            raise

    async def _keep(
        self, generation_id: UUID, tenant_id: UUID, files: Files, *, wants_link: bool
    ) -> StorageState:
        is_tried = wants_link or not self.health.is_failing
        if is_tried and await self._put_all(files):
            return StorageState.STORED
        telemetry.alarm("storage_failed", generation=str(generation_id))
        is_spooled = await self._spooled(tenant_id, files)
        if wants_link and await self._put_until(files, seconds=self._retry_seconds):
            if is_spooled:
                await self._finish(tenant_id, files)
            return StorageState.STORED
        if is_spooled:
            return StorageState.SPOOLED
        self._linger_later(generation_id, tenant_id, files)
        return StorageState.PENDING

    def _linger_later(self, generation_id: UUID, tenant_id: UUID, files: Files) -> None:
        task = asyncio.create_task(
            self._linger(tenant_id, files), name=f"keeping generation {generation_id}"
        )
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)

    async def _put_all(self, files: Files) -> bool:
        try:
            async with asyncio.timeout(PUT_SECONDS):
                puts = [self.store.put(file.path, content) for file, content in files]
                # One file, the usual case, needs no task of its own.
                await (puts[0] if len(puts) == 1 else asyncio.gather(*puts))
        except (StorageFailed, TimeoutError):
            self.health.failed()
            return False
        self.health.succeeded()
        return True

    async def _put_until(self, files: Files, *, seconds: float) -> bool:
        """Retry the store until it accepts the files or the time is over."""
        ends_at = time.monotonic() + seconds
        for attempt in range(int(seconds / BACKOFF_SECONDS[0]) + 1):
            delay = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
            if time.monotonic() + delay > ends_at:
                return False
            await asyncio.sleep(delay)
            if await self._put_all(files):
                return True
        return False

    async def _spooled(self, tenant_id: UUID, files: Files) -> bool:
        try:
            await self.spool.add(tenant_id, files)
        except NOT_SPOOLED as error:
            telemetry.alarm("image_not_spooled", error=type(error).__name__)
            self.health.is_spool_full |= isinstance(error, SpoolFull)
            return False
        telemetry.image_spool_events_total.labels("spooled").inc(len(files))
        return True

    async def _linger(self, tenant_id: UUID, files: Files) -> None:
        """Retry store and spool for another minute, then give the images up."""
        size_bytes = sum(file.size_bytes for file, _ in files)
        is_kept = False
        try:
            if self._lingering_bytes + size_bytes <= MAX_LINGERING_BYTES:
                self._lingering_bytes += size_bytes
                try:
                    is_kept = await self._store_or_spool(tenant_id, files)
                finally:
                    self._lingering_bytes -= size_bytes
        finally:  # also if the last attempt at shutdown is cancelled
            if not is_kept:
                telemetry.image_spool_events_total.labels("lost").inc(len(files))
                telemetry.alarm("images_lost", tenant=str(tenant_id), images=len(files))
        if not is_kept:
            await self._forget(tenant_id, files)

    async def _store_or_spool(self, tenant_id: UUID, files: Files) -> bool:
        ends_at = time.monotonic() + LINGER_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(BACKOFF_SECONDS[-1]):
                    await self._closing.wait()
            # The spool first: it answers sooner than a failing store.
            if await self._spooled(tenant_id, files) or await self._put_all(files):
                return True
            if self._closing.is_set() or time.monotonic() > ends_at:
                return False

    async def _forget(self, tenant_id: UUID, files: Files) -> None:
        """Remove lost images from the history; the sweeper removes partial files."""
        try:
            async with self._database.tenant(tenant_id) as session:
                await expire_at_once(session, tenant_id, [file.id for file, _ in files])
        except (DatabaseUnavailable, SQLAlchemyError):
            log.warning("unstored_images_stay_listed", images=len(files))

    async def _finish(self, tenant_id: UUID, files: Files) -> None:
        """Remove stored images from the spool; the sweeper does it if Postgres is unavailable."""
        try:
            for file, _ in files:
                await self._take_out(tenant_id, file.id, file.path)
        except (DatabaseUnavailable, SQLAlchemyError, StorageFailed):
            log.warning("stored_images_stay_spooled", images=len(files))

    async def _take_out(self, tenant_id: UUID, image_id: str, path: str) -> None:
        if await self.spool.finish(tenant_id, [image_id]):
            # Deleted or expired while it was being stored, so no file may remain.
            await delete_files(self.store, path)

    async def drain(self) -> None:
        """Store spooled images; drop those that were deleted, have expired or are too old.

        An image that is too old is given up only if the store still does not accept it: the
        gateway may have been stopped for long, or the store have failed until now.

        Raises:
            DatabaseUnavailable: Postgres does not respond.
        """
        await self.spool.forget_dead()
        is_waiting = await self._measure()
        if not (is_waiting or self.health.is_failing):
            return
        if not await self.health.probe():
            if is_waiting and self.health.is_failing:
                _report_given_up(await self.spool.forget_old())
            return
        while leased := await self.spool.lease(limit=DRAINED_AT_ONCE):
            stored = await asyncio.gather(*(self.store_spooled(one) for one in leased))
            if not any(stored):
                break
        await self._measure()

    async def _measure(self) -> bool:
        """Export the spool's metrics; return True if it contains images."""
        stats = await self.spool.stats()
        telemetry.image_spool_images.set(stats.images)
        telemetry.image_spool_bytes.set(stats.size_bytes)
        telemetry.image_spool_oldest_seconds.set(stats.oldest_seconds)
        if stats.size_bytes < self.spool.max_bytes * ROOM_AGAIN:
            self.health.is_spool_full = False
        return stats.images > 0

    async def store_spooled(self, spooled: SpooledImage) -> bool:
        """Store one spooled image; return True if it needs no further attempt now."""
        try:
            content = await self.spool.read(spooled.path)
            async with asyncio.timeout(PUT_SECONDS):
                await self.store.put(spooled.path, content)
        except NotFound:  # deleted, or stored by the request meanwhile
            return True
        except (SealBroken, ConfigurationError) as error:
            # Kept until it is too old: a master key may be missing by mistake.
            telemetry.alarm(
                "spooled_image_unreadable", id=spooled.image_id, error=type(error).__name__
            )
            _report_given_up(int(await self.spool.put_off(spooled)))
            return True
        except (StorageFailed, TimeoutError):
            self.health.failed()
            _report_given_up(int(await self.spool.put_off(spooled)))
            return False
        self.health.succeeded()
        await self._take_out(spooled.tenant_id, spooled.image_id, spooled.path)
        telemetry.image_spool_events_total.labels("stored").inc()
        return True


def _report_given_up(images: int) -> None:
    if images:
        telemetry.image_spool_events_total.labels("lost").inc(images)
        telemetry.alarm("spooled_images_given_up", images=images)
