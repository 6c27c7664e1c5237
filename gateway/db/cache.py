"""Caches of look-ups in this process, invalidated when the row behind them changes.

Postgres announces changes (NOTIFY, from triggers) and records them in the table `change`, which is
polled for those whose notification was lost. The time to live is the last backstop.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import asyncpg
from sqlalchemy import text

from gateway.background import repeat
from gateway.db.deadlines import Deadline
from gateway.db.engine import Database, DatabaseUnavailable, OperatorSession
from gateway.errors import Unavailable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

CHANNEL = "gateway_changed"
RECONNECT_SECONDS = 1.0
POLL_SECONDS = 5.0
POLL_TIMEOUT_SECONDS = 5.0
MAX_RECORDED = 1000
"""More changes at once clear every cache."""
KEPT_SECONDS = 3600.0
LISTEN_ERRORS = (
    *(Unavailable, asyncpg.PostgresError, asyncpg.InterfaceError),
    *(OSError, TimeoutError),
)
# The first poll has no horizon: it returns a single row, with the horizon of the second.
_RECORDED = """
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon, c.id, c.tag
    FROM (SELECT) once LEFT JOIN change c ON c.xid >= $1::bigint
    LIMIT $2
"""
_FORGET = text("DELETE FROM change WHERE at < clock_timestamp() - make_interval(secs => :seconds)")
log = logging.getLogger(__name__)
"""The standard library's: commands that read start faster without structlog."""


def _count_nothing() -> None:
    """Count no look-up."""


class Cache(Generic[K, V]):
    """A cache of values by key, each with a tag (tenant id or table name) that invalidates it."""

    def __init__(
        self,
        *,
        ttl_seconds: float,
        max_entries: int,
        load_seconds: float,
        hit: Callable[[], None] = _count_nothing,
        miss: Callable[[], None] = _count_nothing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Call `hit` or `miss` at each look-up."""
        self._hit, self._miss = hit, miss
        self._ttl_seconds = ttl_seconds
        self._max_entries = max_entries
        self._load_seconds = load_seconds
        self._clock = clock
        self._entries: OrderedDict[K, tuple[V, str, float]] = OrderedDict()
        self._keys_by_tag: dict[str, set[K]] = {}
        self._epoch = 0
        self._loading: dict[K, tuple[int, asyncio.Task[V | None]]] = {}

    async def get(self, key: K, load: Callable[[], Awaitable[tuple[V, str] | None]]) -> V | None:
        """Return the cached value, or the result of `load` (value and tag); None is not cached.

        Concurrent callers share one load: a popular value that has just changed must not cost a
        connection for each of them.

        Raises:
            DatabaseUnavailable: loading timed out.
        """
        entry = self._entries.get(key)
        if entry is not None and self._clock() - entry[2] < self._ttl_seconds:
            self._entries.move_to_end(key)
            self._hit()
            return entry[0]
        self._miss()
        epoch, loading = self._loading.get(key, (-1, None))
        if loading is None or epoch != self._epoch:
            loading = asyncio.create_task(self._load(key, load))
            loading.add_done_callback(lambda task: self._loaded(key, task))
            self._loading[key] = (self._epoch, loading)
        return await asyncio.shield(loading)

    async def _load(self, key: K, load: Callable[[], Awaitable[tuple[V, str] | None]]) -> V | None:
        epoch = self._epoch
        try:
            async with Deadline(self._load_seconds):
                found = await load()
        except TimeoutError as error:
            raise DatabaseUnavailable from error
        if found is None:
            self._forget(key)
            return None
        # The row that was read may lack a change announced during the read.
        self.keep_read(key, *found, epoch=epoch)
        return found[0]

    def _loaded(self, key: K, task: "asyncio.Task[V | None]") -> None:
        if self._loading.get(key, (0, None))[1] is task:
            del self._loading[key]
        # Retrieve the exception, or asyncio reports it as lost when no caller waited for it.
        if not task.cancelled():
            task.exception()

    def __len__(self) -> int:
        """Count the cached values."""
        return len(self._entries)

    @property
    def epoch(self) -> int:
        """The number of changes so far, for `keep_read`."""
        return self._epoch

    def keep_read(self, key: K, value: V, tag: str, *, epoch: int) -> None:
        """Cache a value that was read since `epoch`, unless a change has been announced since."""
        if epoch == self._epoch:
            self._keep(key, value, tag)

    def clear(self, tag: str | None = None) -> None:
        """Drop the values with this tag, or all values."""
        self._epoch += 1
        if tag is None:
            self._entries.clear()
            self._keys_by_tag.clear()
            return
        for key in self._keys_by_tag.pop(tag, set()):
            self._entries.pop(key, None)

    def _keep(self, key: K, value: V, tag: str) -> None:
        self._forget(key)
        self._entries[key] = (value, tag, self._clock())
        self._keys_by_tag.setdefault(tag, set()).add(key)
        while len(self._entries) > self._max_entries:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        keys = self._keys_by_tag.get(entry[1])
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._keys_by_tag[entry[1]]


class RecordedChanges:
    """The changes that become visible in the table `change`, in whatever order they commit.

    Ids do not commit in order, so each poll reads every change of a transaction that was not
    finished at the poll before, and leaves out those that it has returned.
    """

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._horizon: int | None = None
        self._known: frozenset[int] = frozenset()

    async def poll(self) -> set[str | None]:
        """Return the tags of new changes, or {None} for too many; the first poll returns none."""
        rows = await self._connection.fetch(
            _RECORDED, self._horizon, MAX_RECORDED + 1, timeout=POLL_TIMEOUT_SECONDS
        )
        found = {row["id"]: row["tag"] for row in rows if row["id"] is not None}
        new = found.keys() - self._known
        self._horizon, self._known = rows[0]["horizon"], frozenset(found)
        return {None} if len(rows) > MAX_RECORDED else {found[one] for one in new}


async def forget_recorded(session: OperatorSession) -> None:
    """Delete the changes that every gateway has read by now."""
    await session.execute(_FORGET, {"seconds": KEPT_SECONDS})


class ChangeListener:
    """A listener to Postgres' change notifications, which invalidates the caches.

    Every `poll_seconds` it reads the recorded changes, which also tells whether the connection is
    alive.
    """

    def __init__(
        self,
        database: Database,
        clear: Callable[[str | None], None],
        *,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._database = database
        self._clear = clear
        self._poll_seconds = poll_seconds
        self._task: asyncio.Task[None] | None = None
        self._attempted = asyncio.Event()

    async def start(self) -> None:
        """Start listening, with reconnection; return after the first attempt to connect.

        Caches are cleared at each connection, so load into them only afterwards.
        """
        self._task = asyncio.create_task(
            repeat("change-listener", self._listen_again), name="change-listener"
        )
        self._task.add_done_callback(lambda _task: self._attempted.set())
        await self._attempted.wait()

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _listen_again(self) -> None:
        try:
            await self._listen()
        except LISTEN_ERRORS as error:
            log.warning("change_listener_lost: %s", type(error).__name__)
        else:
            return
        finally:
            self._attempted.set()
        await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen(self) -> None:
        connection = await self._database.connect()
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        try:
            await connection.add_listener(CHANNEL, self._heard)
            changes = RecordedChanges(connection)
            await changes.poll()
            # Changes before this connection were not received.
            self._clear(None)
            self._attempted.set()
            while not lost.is_set():
                try:
                    # Not `wait_for`, which can lose a cancellation that coincides with the event.
                    async with asyncio.timeout(self._poll_seconds):
                        await lost.wait()
                except TimeoutError:
                    for tag in await changes.poll():
                        self._clear(tag)
        finally:
            self._clear(None)
            connection.terminate()

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._clear(str(payload))
