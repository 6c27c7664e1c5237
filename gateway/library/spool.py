"""The spool: bytes of paid images that the store has not accepted yet.

It is a table, so that every replica can deliver and drain the images of the others, a kill loses
nothing, and deletion is one commit with the image's row. The bytes are encrypted with the tenant's
data key.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, delete, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from gateway.billing.settlement import StoredFile
from gateway.config import StorageSettings
from gateway.db.engine import Database, OperatorSession, TenantSession
from gateway.db.pools import Beside
from gateway.db.spool_table import SpooledImageRow
from gateway.db.tables import ImageRow
from gateway.errors import NotFound
from gateway.library.retention import forget_spooled
from gateway.library.storage import StoredObject, image_id_of, tenant_of
from gateway.vault.sealing import Vault

KIND = "image_spool"
WRITE_LOCK = 4_702_111_234_571
"""Key of the advisory lock that serialises writers; arbitrary, but equal in all replicas."""
PARALLEL_WRITES = 2
PARALLEL_READS = 2
"""Few of the pool's connections: images are large, and the money path needs the others."""
LEASE = timedelta(minutes=2)
MAX_RETRY = timedelta(minutes=1)
MAX_DOUBLINGS = 6
GIVE_UP_ATTEMPTS = 5
"""Minimum attempts before an old image is given up: after a long stop it has had none yet."""


class SpoolFull(Exception):
    """The spool has no space for these bytes."""


@dataclass(frozen=True, slots=True)
class SpoolStats:
    """Number, size and highest age of the spooled images."""

    images: int
    size_bytes: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class SpooledImage:
    """One spooled image, leased by a worker that stores it."""

    image_id: str
    tenant_id: UUID
    path: str
    attempts: int


class Spool:
    """Keeps images in Postgres until the store accepts them."""

    def __init__(self, database: Database, vault: Vault, settings: StorageSettings) -> None:
        self._database = database
        self._background = database.beside(Beside.BACKGROUND)
        self._vault = vault
        self._settings = settings
        self._writing = asyncio.Semaphore(PARALLEL_WRITES)
        self._reading = asyncio.Semaphore(PARALLEL_READS)

    @property
    def max_bytes(self) -> int:
        """The capacity in bytes."""
        return self._settings.spool_max_bytes

    async def add(self, tenant_id: UUID, files: Sequence[tuple[StoredFile, bytes]]) -> None:
        """Keep the images of one generation durably, all or none of them.

        Raises:
            SpoolFull: they do not fit.
            DatabaseUnavailable: no acknowledgement; the images may be spooled all the same.
            ConfigurationError, SealBroken: the tenant's data key cannot be decrypted.
        """
        size_bytes = sum(file.size_bytes for file, _ in files)
        # The capacity counts every tenant's bytes, which only an operator's transaction sees.
        async with self._writing, self._database.operator() as session:
            rows = [await self._sealed(session, tenant_id, *file) for file in files]
            # Writers take turns to sum up and insert, or together they would exceed the capacity.
            await session.execute(select(func.pg_advisory_xact_lock(WRITE_LOCK)))
            if (await _stats(session)).size_bytes + size_bytes > self._settings.spool_max_bytes:
                raise SpoolFull
            # A commit whose acknowledgement was lost has inserted the rows already.
            await session.execute(insert(SpooledImageRow).values(rows).on_conflict_do_nothing())

    async def _sealed(
        self, session: OperatorSession, tenant_id: UUID, file: StoredFile, content: bytes
    ) -> dict[str, object]:
        version, sealed = await self._vault.seal_bytes_for_tenant(
            TenantSession(session), tenant_id, content, KIND, file.id, file.path
        )
        return {
            "image_id": file.id,
            "tenant_id": tenant_id,
            "path": file.path,
            "data_key_version": version,
            "sealed": sealed,
            "size_bytes": len(content),
        }

    async def read(self, path: str) -> bytes:
        """Return the bytes of the image that belongs at `path`.

        Raises:
            NotFound: the image is not in the spool.
            SealBroken: the bytes were changed, or moved from another row.
            DatabaseUnavailable: Postgres does not respond.
        """
        tenant_id = tenant_of(path)
        async with self._reading:
            async with self._database.tenant(tenant_id) as session:
                version, sealed = await _sealed_bytes(session, tenant_id, path)
            return await self._vault.open_bytes_for_tenant(
                self._database, tenant_id, version, sealed, *(KIND, image_id_of(path), path)
            )

    async def find(self, path: str) -> StoredObject:
        """Return size and time of the spooled image for `path`.

        Raises:
            NotFound: the image is not in the spool.
            DatabaseUnavailable: Postgres does not respond.
        """
        tenant_id = tenant_of(path)
        async with self._database.tenant(tenant_id) as session:
            return await _described(session, tenant_id, path)

    async def lease(self, *, limit: int) -> list[SpooledImage]:
        """Lease images that are due, for this worker alone until the lease ends."""
        async with self._background.operator() as session:
            return await _lease(session, limit=limit)

    async def put_off(self, spooled: SpooledImage) -> bool:
        """Reschedule a failed image with backoff, or give it up.

        Returns True if it was given up: it is too old and was tried often enough.
        """
        async with self._background.operator() as session:
            if spooled.attempts >= GIVE_UP_ATTEMPTS and await _forget_old(
                session, self._settings.spool_seconds, *_leased(spooled)
            ):
                return True
            await _put_off(session, spooled)
            return False

    async def finish(self, tenant_id: UUID, image_ids: Sequence[str]) -> set[str]:
        """Remove images that the store has accepted; return those deleted or expired meanwhile.

        The caller must delete their files from the store again.
        """
        async with self._background.tenant(tenant_id) as session:
            await forget_spooled(session, image_ids)
            dead = await session.scalars(
                select(ImageRow.id).where(
                    ImageRow.tenant_id == tenant_id, ImageRow.id.in_(image_ids), *_is_dead()
                )
            )
            return set(dead)

    async def forget_dead(self) -> int:
        """Remove images that were deleted or have expired; return the number."""
        async with self._background.operator() as session:
            return await _forget_dead(session)

    async def forget_old(self) -> int:
        """Give up and expire images that are too old; return the number.

        Leased images are left to their worker.
        """
        async with self._background.operator() as session:
            is_due = SpooledImageRow.next_attempt_at <= func.now()
            return await _forget_old(session, self._settings.spool_seconds, is_due)

    async def stats(self) -> SpoolStats:
        """Return number, size and highest age of the spooled images."""
        async with self._background.operator() as session:
            return await _stats(session)


async def _sealed_bytes(session: TenantSession, tenant_id: UUID, path: str) -> tuple[int, bytes]:
    found = await session.execute(
        select(SpooledImageRow.data_key_version, SpooledImageRow.sealed).where(
            SpooledImageRow.tenant_id == tenant_id,
            SpooledImageRow.image_id == image_id_of(path),
            SpooledImageRow.path == path,
        )
    )
    row = found.one_or_none()
    if row is None:
        raise _not_spooled()
    return row.data_key_version, row.sealed


async def _described(session: TenantSession, tenant_id: UUID, path: str) -> StoredObject:
    found = await session.execute(
        select(SpooledImageRow.size_bytes, SpooledImageRow.created_at).where(
            SpooledImageRow.tenant_id == tenant_id,
            SpooledImageRow.image_id == image_id_of(path),
            SpooledImageRow.path == path,
        )
    )
    row = found.one_or_none()
    if row is None:
        raise _not_spooled()
    return StoredObject(path, row.size_bytes, row.created_at)


async def _lease(session: OperatorSession, *, limit: int) -> list[SpooledImage]:
    due = (
        select(SpooledImageRow.image_id)
        .where(SpooledImageRow.next_attempt_at <= func.now())
        .order_by(SpooledImageRow.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    found = await session.execute(
        update(SpooledImageRow)
        .where(SpooledImageRow.image_id.in_(due))
        .values(attempts=SpooledImageRow.attempts + 1, next_attempt_at=func.now() + LEASE)
        .returning(
            SpooledImageRow.image_id,
            SpooledImageRow.tenant_id,
            SpooledImageRow.path,
            SpooledImageRow.attempts,
        )
        .execution_options(synchronize_session=False)
    )
    return [SpooledImage(*row) for row in found]


async def _put_off(session: OperatorSession, spooled: SpooledImage) -> None:
    delay = min(MAX_RETRY, timedelta(seconds=2 ** min(spooled.attempts, MAX_DOUBLINGS)))
    await session.execute(
        update(SpooledImageRow)
        .where(*_leased(spooled))
        .values(next_attempt_at=func.now() + delay)
        .execution_options(synchronize_session=False)
    )


def _leased(spooled: SpooledImage) -> Sequence[ColumnElement[bool]]:
    """Return the condition that this worker still has the lease: no further attempt was made."""
    return [
        SpooledImageRow.image_id == spooled.image_id,
        SpooledImageRow.attempts == spooled.attempts,
    ]


async def _forget_dead(session: OperatorSession) -> int:
    is_dead = exists().where(ImageRow.id == SpooledImageRow.image_id, *_is_dead())
    found = await session.scalars(
        delete(SpooledImageRow)
        .where(is_dead)
        .returning(SpooledImageRow.image_id)
        .execution_options(synchronize_session=False)
    )
    return len(found.all())


async def _forget_old(
    session: OperatorSession, max_age_seconds: int, *which: ColumnElement[bool]
) -> int:
    is_old = SpooledImageRow.created_at < func.now() - timedelta(seconds=max_age_seconds)
    found = await session.scalars(
        delete(SpooledImageRow)
        .where(is_old, *which)
        .returning(SpooledImageRow.image_id)
        .execution_options(synchronize_session=False)
    )
    image_ids = found.all()
    if image_ids:
        await session.execute(
            update(ImageRow)
            .where(ImageRow.id.in_(image_ids))
            .values(expires_at=func.now())
            .execution_options(synchronize_session=False)
        )
    return len(image_ids)


async def _stats(session: OperatorSession) -> SpoolStats:
    row = (
        await session.execute(
            select(
                func.count(),
                func.coalesce(func.sum(SpooledImageRow.size_bytes), 0),
                func.coalesce(
                    func.extract("epoch", func.now() - func.min(SpooledImageRow.created_at)), 0
                ),
            ).select_from(SpooledImageRow)
        )
    ).one()
    return SpoolStats(row[0], int(row[1]), float(row[2]))


def _is_dead() -> Sequence[ColumnElement[bool]]:
    # clock_timestamp, not now: an image may expire while this transaction is open.
    return [or_(ImageRow.deleted_at.is_not(None), ImageRow.expires_at <= func.clock_timestamp())]


def _not_spooled() -> NotFound:
    return NotFound("This image is no longer stored.", code="image_not_found")
