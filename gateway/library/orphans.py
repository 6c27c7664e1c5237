"""Reconciliation of store and database after crashes: orphaned files and rows without a file.

Walks over the tenants of this database that had calls, and compares their files with their rows
day by day, each folder listed once. Files younger than any call can be, or not named like an image,
are left alone.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, and_, exists, func, literal_column, select, text, tuple_

from gateway.db.engine import Database, OperatorSession, TenantSession
from gateway.db.money_tables import ReservationRow
from gateway.db.spool_table import SpooledImageRow
from gateway.db.tables import ImageRow, SweepRow
from gateway.errors import NotFound
from gateway.library.retention import mark_deleted
from gateway.library.storage import ImageStore, StoredObject, image_id_of, image_of
from gateway.tenancy import tenants

TENANTS_AT_ONCE = 200
CHANGED_AT_ONCE = 10_000
"""More than of all tenants: each page reads every call since the last comparison."""
ROWS_AT_ONCE = 1000
PARALLEL_STORE_CALLS = 8
CLOCK_SKEW = timedelta(minutes=1)
LONGEST_CALL = timedelta(hours=2)
WHOLE_EVERY = timedelta(days=7)
DAY = timedelta(days=1)
FOLDERS_KEPT = 2
"""Listings in memory: an image made at midnight can have a row of the next day."""
PROGRESS_SECONDS = 10.0
SWEEP = "orphans"
MARK_PATH = "image-gateway.store"
MARK_CHARACTERS = 32
_FIRST_ID = UUID(int=0)
_CHANGED = text("""
    SELECT tenant_id FROM (
        SELECT tenant_id FROM usage_slot
        WHERE slot >= date_trunc('hour', CAST(:start AS timestamptz))
        UNION SELECT tenant_id FROM usage_pending
        UNION SELECT tenant_id FROM reservation WHERE state IN ('held', 'unknown')
    ) changed WHERE tenant_id > :after ORDER BY tenant_id LIMIT :limit
""")
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
    whole: bool = False,
) -> RemovedOrphans:
    """Remove files and rows older than `before` that have no counterpart.

    Only days since the last comparison are compared, of tenants with calls in them, unless `whole`
    or a week after the last whole one. `progress` is awaited every few seconds. No transaction is
    open during store calls.

    Raises:
        StorageFailed: the store does not respond; its files then do not count as missing.
    """
    known = await _read_known(database, store)
    start = None if whole else known.compared_to
    now = datetime.now(UTC)
    if known.whole_at is None or known.whole_at < now - WHOLE_EVERY:
        start = None
    done, kept_from = RemovedOrphans(), min(before, now)
    async for tenant_id in _tenant_ids(database, start, _Rarely(progress)):
        comparison = _Comparison(
            database, store, tenant_id, before=before, since=max(known.since, start or known.since)
        )
        done += await comparison.run(await _folders(store, tenant_id, start, before))
        kept_from = min(kept_from, comparison.kept_from or kept_from)
    compared_to = max(kept_from, now - WHOLE_EVERY) - LONGEST_CALL
    await _write_compared(database, compared_to, is_whole=start is None)
    return done


class _Rarely:
    """A callback of progress that is awaited once in a while, however often it happens."""

    def __init__(self, progress: Callable[[], Awaitable[None]]) -> None:
        self._progress = progress
        self._due = time.monotonic() + PROGRESS_SECONDS

    async def __call__(self) -> None:
        if time.monotonic() >= self._due:
            await self._progress()
            self._due = time.monotonic() + PROGRESS_SECONDS


async def _tenant_ids(
    database: Database, start: datetime | None, progress: Callable[[], Awaitable[None]]
) -> AsyncIterator[UUID]:
    """Yield every tenant, or those with calls since `start` or with open ones."""
    after = _FIRST_ID
    while True:
        async with database.operator() as session:
            if start is None:
                found = await tenants.ids_after(session, after, limit=TENANTS_AT_ONCE)
            else:
                rows = await session.execute(
                    _CHANGED, {"after": after, "start": start, "limit": CHANGED_AT_ONCE}
                )
                found = list(rows.scalars())
        if not found:
            return
        for tenant_id in found:
            yield tenant_id
            await progress()
        after = found[-1]


async def _folders(
    store: ImageStore, tenant_id: UUID, start: datetime | None, before: datetime
) -> list[str]:
    """Return the tenant's folders of days from `start` on, or all of them, oldest first."""
    if start is None:
        return sorted(await store.days(tenant_id))
    first, last = start.date(), min(before, datetime.now(UTC)).date()
    days = ((first + timedelta(days=number)) for number in range((last - first).days + 1))
    return [f"{tenant_id}/{day:%Y/%m/%d}" for day in days]


@dataclass(frozen=True, slots=True)
class _Known:
    """The time since which this store is in use, and what was compared already."""

    since: datetime
    compared_to: datetime | None
    whole_at: datetime | None


async def _read_known(database: Database, store: ImageStore) -> _Known:
    """Recognise the store: older rows than its first use may refer to another one.

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


async def _recognise(session: OperatorSession, mark: str) -> _Known:
    row = await session.get_one(SweepRow, SWEEP, with_for_update=True)
    now = (await session.scalars(select(func.now()))).one()
    if row.store_mark != mark or row.store_since is None:
        row.store_mark, row.store_since = mark, now
        row.compared_to = row.whole_at = None
    return _Known(row.store_since, row.compared_to, row.whole_at)


async def _write_compared(database: Database, to: datetime, *, is_whole: bool) -> None:
    async with database.operator() as session:
        row = await session.get_one(SweepRow, SWEEP, with_for_update=True)
        row.compared_to = to
        if is_whole:
            row.whole_at = func.now()


class _Comparison:
    """The comparison of one tenant's files with its rows, folder by folder, oldest first.

    Each folder is listed once. The rows follow the folders by their time: a row whose folder is not
    the last or the one before is looked for by its name.
    """

    def __init__(
        self,
        database: Database,
        store: ImageStore,
        tenant_id: UUID,
        *,
        before: datetime,
        since: datetime,
    ) -> None:
        self._database = database
        self._store = store
        self._tenant_id = tenant_id
        self._before = before
        self._after = dict.fromkeys((True, False), (since, ""))
        self._listed: dict[str, set[str]] = {}
        self.kept_from: datetime | None = None
        """The time of the oldest file without a row that stays, because a call may still end."""

    async def run(self, folders: Sequence[str]) -> RemovedOrphans:
        """Compare these folders, and every row so far."""
        done = RemovedOrphans()
        for folder in folders:
            done += RemovedOrphans(files=await self._delete_orphans(folder))
            until = datetime.strptime(folder[-10:], "%Y/%m/%d").replace(tzinfo=UTC) + DAY
            done += RemovedOrphans(rows=await self._forget_missing(min(until, self._before)))
        return done + RemovedOrphans(rows=await self._forget_missing(self._before))

    async def _delete_orphans(self, folder: str) -> int:
        """List the folder; delete its files that have no row."""
        tenant_id = self._tenant_id
        count = await self._store.delete_unfinished(folder, self._before)
        listed: set[str] = set()
        async for files in self._store.list(folder):
            listed.update(file.path for file in files)
            old = [f for f in files if f.modified_at < self._before and image_of(f.path)]
            if not old:
                continue
            async with self._database.tenant(tenant_id) as session:
                without = await _without_row(session, tenant_id, old)
                orphans = await _settled(session, tenant_id, without, before=self._before)
            kept = {file.modified_at for file in without} - {file.modified_at for file in orphans}
            self.kept_from = min(kept, default=self.kept_from)
            await _at_once(self._store.delete(file.path) for file in orphans)
            count += len(orphans)
        self._listed = dict([*self._listed.items(), (folder, listed)][-FOLDERS_KEPT:])
        return count

    async def _forget_missing(self, until: datetime) -> int:
        """Mark the next rows, those before `until`, as deleted if their file is missing."""
        count, tenant_id = 0, self._tenant_id
        for livemode in self._after:
            while True:
                async with self._database.tenant(tenant_id) as session:
                    after = self._after[livemode]
                    rows = await _rows(
                        session, tenant_id, livemode=livemode, after=after, before=until
                    )
                if not rows:
                    break
                missing = await self._missing(rows)
                if missing:
                    async with self._database.tenant(tenant_id) as session:
                        await mark_deleted(session, missing)
                count += len(missing)
                self._after[livemode] = (rows[-1].created_at, rows[-1].id)
        return count

    async def _missing(self, rows: Sequence["_ImageFile"]) -> list[str]:
        """Return the ids of images whose file is neither listed nor found by its name."""
        unseen = [row for row in rows if not self._is_listed(row.path)]
        gone = await _at_once(_is_gone(self._store, row.path) for row in unseen)
        return [row.id for row, is_gone in zip(unseen, gone, strict=True) if is_gone]

    def _is_listed(self, path: str) -> bool:
        return path in self._listed.get(path.rpartition("/")[0], ())


async def _without_row(
    session: TenantSession, tenant_id: UUID, files: Sequence[StoredObject]
) -> list[StoredObject]:
    """Return the `files` that have no living row."""
    rows = await session.scalars(
        select(ImageRow.path).where(
            ImageRow.tenant_id == tenant_id,
            ImageRow.id.in_({image_id_of(file.path) for file in files}),
            ImageRow.deleted_at.is_(None),
        )
    )
    living = set(rows)
    return [file for file in files if image_of(file.path) not in living]


async def _settled(
    session: TenantSession, tenant_id: UUID, without: Sequence[StoredObject], *, before: datetime
) -> Sequence[StoredObject]:
    """Return the files without a row for which no call can still write one.

    After an outage of Postgres calls settle late, even by hours. So files stay as long as an
    earlier call is open, or was estimated only after `before`.
    """
    if not without:
        return []
    times = [file.modified_at for file in without]
    # Two queries, so that each finds its rows by an index.
    of_tenant = select(func.min(ReservationRow.admitted_at)).where(
        ReservationRow.tenant_id == tenant_id
    )
    # Literals, because Postgres uses the small partial indexes only with them.
    is_open: ColumnElement[bool] = literal_column("state IN ('held', 'unknown')")
    may_be_corrected = and_(
        ReservationRow.outcome == "estimated",
        ReservationRow.state == literal_column("'posted_est'"),
        ReservationRow.resolved_at > before,
        ReservationRow.admitted_at.between(min(times) - LONGEST_CALL, max(times) + CLOCK_SKEW),
    )
    since = [await session.scalar(of_tenant.where(one)) for one in (is_open, may_be_corrected)]
    unsettled = [moment for moment in since if moment is not None]
    if not unsettled:
        return without
    return [file for file in without if file.modified_at < min(unsettled) - CLOCK_SKEW]


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
