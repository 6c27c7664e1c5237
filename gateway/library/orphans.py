"""Reconciliation of store and database after crashes: orphaned files and rows without a file.

Walks over the tenants of this database and compares their files with their rows, a bounded number
at once. Files younger than any call can be, or not named like an image, are left alone.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

from sqlalchemy import and_, exists, func, select, tuple_

from gateway.db.engine import Database, OperatorSession, TenantSession
from gateway.db.money_tables import ReservationRow
from gateway.db.spool_table import SpooledImageRow
from gateway.db.tables import ImageRow, SweepRow
from gateway.errors import NotFound
from gateway.library.retention import mark_deleted
from gateway.library.storage import ImageStore, StoredObject, image_id_of, image_of
from gateway.tenancy import tenants

TENANTS_AT_ONCE = 200
ROWS_AT_ONCE = 1000
PARALLEL_STORE_CALLS = 8
CLOCK_SKEW = timedelta(minutes=1)
LONGEST_CALL = timedelta(hours=2)
SWEEP = "orphans"
MARK_PATH = "image-gateway.store"
MARK_CHARACTERS = 32
_FIRST_ID = UUID(int=0)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RemovedOrphans:
    """Numbers of removed files without a row and rows without a file."""

    files: int = 0
    rows: int = 0

    def __add__(self, other: "RemovedOrphans") -> "RemovedOrphans":
        return RemovedOrphans(self.files + other.files, self.rows + other.rows)


async def reconcile(
    database: Database,
    store: ImageStore,
    *,
    before: datetime,
    progress: Callable[[], Awaitable[None]],
) -> RemovedOrphans:
    """Remove files and rows older than `before` that have no counterpart.

    `progress` is awaited once per batch of tenants. No transaction is open during store calls.

    Raises:
        StorageFailed: the store does not respond; its files then do not count as missing.
    """
    since = await _known_since(database, store)
    done = RemovedOrphans()
    async for tenant_id in _tenant_ids(database, progress):
        done += RemovedOrphans(
            files=await _delete_orphans(database, store, tenant_id, before=before),
            rows=await _forget_missing(database, store, tenant_id, since=since, before=before),
        )
    return done


async def _tenant_ids(
    database: Database, progress: Callable[[], Awaitable[None]]
) -> AsyncIterator[UUID]:
    after = _FIRST_ID
    while True:
        async with database.operator() as session:
            found = await tenants.ids_after(session, after, limit=TENANTS_AT_ONCE)
        if not found:
            return
        for tenant_id in found:
            yield tenant_id
        after = found[-1]
        await progress()


async def _known_since(database: Database, store: ImageStore) -> datetime:
    """Return the time since which this store is in use; older rows may refer to another store.

    A mark file identifies the store. Without it, a changed address or an unmounted disk would look
    like the loss of every file, and its return like files without rows.
    """
    try:
        mark = (await store.get(MARK_PATH))[:MARK_CHARACTERS].decode(errors="replace")
    except NotFound:
        mark = secrets.token_hex(MARK_CHARACTERS // 2)
        await store.put(MARK_PATH, mark.encode())
    async with database.operator() as session:
        return await _recognise(session, mark)


async def _recognise(session: OperatorSession, mark: str) -> datetime:
    row = await session.get_one(SweepRow, SWEEP, with_for_update=True)
    now = (await session.scalars(select(func.now()))).one()
    if row.store_mark != mark or row.store_since is None:
        row.store_mark, row.store_since = mark, now
    return row.store_since


async def _delete_orphans(
    database: Database, store: ImageStore, tenant_id: UUID, *, before: datetime
) -> int:
    """Delete the tenant's files that have no row."""
    count = await store.delete_unfinished(str(tenant_id), before)
    async for files in store.list(str(tenant_id)):
        old = [file for file in files if file.modified_at < before and image_of(file.path)]
        if not old:
            continue
        async with database.tenant(tenant_id) as session:
            orphans = await _orphans(session, tenant_id, old, before=before)
        await _at_once(store.delete(file.path) for file in orphans)
        count += len(orphans)
    return count


async def _orphans(
    session: TenantSession, tenant_id: UUID, files: Sequence[StoredObject], *, before: datetime
) -> list[StoredObject]:
    """Return the `files` that have no living row and for which no call can still write one.

    After an outage of Postgres calls settle late, even by hours. So files stay as long as an
    earlier call is open, or was estimated only after `before`.
    """
    rows = await session.scalars(
        select(ImageRow.path).where(
            ImageRow.tenant_id == tenant_id,
            ImageRow.id.in_({image_id_of(file.path) for file in files}),
            ImageRow.deleted_at.is_(None),
        )
    )
    living = set(rows)
    without = [file for file in files if image_of(file.path) not in living]
    if not without:
        return []
    times = [file.modified_at for file in without]
    # Two queries, so that each finds its rows by an index.
    of_tenant = select(func.min(ReservationRow.admitted_at)).where(
        ReservationRow.tenant_id == tenant_id
    )
    is_open = ReservationRow.state.in_(["held", "unknown"])
    may_be_corrected = and_(
        ReservationRow.outcome == "estimated",
        ReservationRow.state == "posted_est",
        ReservationRow.resolved_at > before,
        ReservationRow.admitted_at.between(min(times) - LONGEST_CALL, max(times) + CLOCK_SKEW),
    )
    since = [await session.scalar(of_tenant.where(one)) for one in (is_open, may_be_corrected)]
    unsettled = [moment for moment in since if moment is not None]
    if not unsettled:
        return without
    return [file for file in without if file.modified_at < min(unsettled) - CLOCK_SKEW]


async def _forget_missing(
    database: Database,
    store: ImageStore,
    tenant_id: UUID,
    *,
    since: datetime,
    before: datetime,
) -> int:
    """Mark the tenant's rows whose file is missing as deleted."""
    count = 0
    for livemode in (True, False):
        after = (since, "")
        while True:
            async with database.tenant(tenant_id) as session:
                rows = await _rows(
                    session, tenant_id, livemode=livemode, after=after, before=before
                )
            if not rows:
                break
            missing = await _missing(store, {row.path: row.id for row in rows})
            if missing:
                async with database.tenant(tenant_id) as session:
                    await mark_deleted(session, missing)
            count += len(missing)
            after = (rows[-1].created_at, rows[-1].id)
    return count


@dataclass(frozen=True, slots=True)
class _ImageFile:
    id: str
    path: str
    created_at: datetime


async def _rows(
    session: TenantSession,
    tenant_id: UUID,
    *,
    livemode: bool,
    after: tuple[datetime, str],
    before: datetime,
) -> list[_ImageFile]:
    """Return the next living rows, oldest first, without those whose bytes are in the spool.

    The spool is read before the store: an image that is drained meanwhile is found in the store.
    """
    is_spooled = exists().where(
        SpooledImageRow.tenant_id == tenant_id, SpooledImageRow.image_id == ImageRow.id
    )
    found = await session.execute(
        select(ImageRow.id, ImageRow.path, ImageRow.created_at)
        .where(
            ImageRow.tenant_id == tenant_id,
            ImageRow.livemode.is_(livemode),
            ImageRow.deleted_at.is_(None),
            ImageRow.created_at < before,
            ~is_spooled,
            tuple_(ImageRow.created_at, ImageRow.id) > tuple_(*after),
        )
        .order_by(ImageRow.created_at, ImageRow.id)
        .limit(ROWS_AT_ONCE)
    )
    return [_ImageFile(row.id, row.path, row.created_at) for row in found]


async def _missing(store: ImageStore, ids_by_path: dict[str, str]) -> list[str]:
    """Return the ids of images whose file is neither listed in its folder nor found by name."""
    unseen = dict(ids_by_path)
    for folder in {path.rpartition("/")[0] for path in ids_by_path}:
        async for files in store.list(folder):
            for file in files:
                unseen.pop(file.path, None)
    gone = await _at_once(_is_gone(store, path) for path in unseen)
    return [image_id for image_id, is_gone in zip(unseen.values(), gone, strict=True) if is_gone]


async def _is_gone(store: ImageStore, path: str) -> bool:
    try:
        await store.find(path)
    except NotFound:
        return True
    return False


async def _at_once(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Await all calls, a bounded number concurrently, and return their results in order."""
    semaphore = asyncio.Semaphore(PARALLEL_STORE_CALLS)

    async def bounded(call: Awaitable[T]) -> T:
        async with semaphore:
            return await call

    return await asyncio.gather(*(bounded(call) for call in calls))
