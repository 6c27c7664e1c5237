"""The writer of request records, in the background: a log line and a table row per request.

Both are made of the same JSON, in batches (docs/decisions/0022-request-log-in-batches.md). Queues
are bounded: records beyond the bound are dropped and counted, and the request never waits.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Literal

import orjson
import structlog
from sqlalchemy.exc import DBAPIError

from gateway import telemetry
from gateway.background import repeat
from gateway.config import Settings
from gateway.db.engine import Database, DatabaseUnavailable, answered_within
from gateway.logs import REQUEST_LOGGER
from gateway.request_record import SHOWN, RequestRecord

LINE_SECONDS = 0.1
ROW_SECONDS = 1.0
WRITE_SECONDS = 5.0
MOST_AT_ONCE = 500
CLOSE_SECONDS = 2.0
MINUTE_SECONDS = 60.0
EVENT = "request"
_shown = attrgetter(*SHOWN)
log = structlog.get_logger(__name__)


class RequestLog:
    """The log's queues and the tasks that drain them. Must be created in a running event loop.

    `database` is None if no rows are wanted. `unauthenticated_per_minute` bounds the rows of
    requests without a known key: a flood of them must not fill the table.
    """

    def __init__(
        self,
        database: Database | None,
        *,
        log_format: Literal["console", "json"],
        max_waiting: int,
        unauthenticated_per_minute: int,
    ) -> None:
        self._log_format = log_format
        self._lines = _Batches("lines", _write_lines, max_waiting, LINE_SECONDS)
        self._rows = None
        if database is not None:
            write = partial(_write_rows, database)
            self._rows = _Batches("rows", write, max_waiting, ROW_SECONDS)
        self._unauthenticated = _PerMinute(unauthenticated_per_minute)

    def put(self, record: RequestRecord) -> None:
        """Enqueue a complete record. Never waits and never raises."""
        values = zip(SHOWN, _shown(record), strict=True)
        shown = {name: value for name, value in values if value is not None}
        logger = logging.getLogger(REQUEST_LOGGER)
        is_logged = logger.isEnabledFor(logging.INFO)
        if is_logged and self._log_format == "console":
            log.info(EVENT, **_for_people(shown))
            is_logged = False
        if not is_logged and self._rows is None:
            return
        # orjson does not know the driver's own UUID class.
        line = orjson.dumps({"event": EVENT, "level": "info", **shown}, default=str)
        if is_logged:
            self._lines.put(line)
        if self._rows is not None and self._may_store(record):
            self._rows.put(line)

    async def flush(self) -> None:
        """Write the queued records.

        Raises:
            DatabaseUnavailable: Postgres is away; the rows stay queued.
        """
        await self._lines.flush()
        if self._rows is not None:
            await self._rows.flush()

    async def close(self) -> None:
        """Write the queued records within a short time; drop and count the rest."""
        await self._lines.close()
        if self._rows is not None:
            await self._rows.close()

    def _may_store(self, record: RequestRecord) -> bool:
        known = (record.tenant_id, record.operator_key_id, record.session_id)
        if any(one is not None for one in known):
            return True
        if self._unauthenticated.take():
            return True
        telemetry.request_log_dropped_total.labels("unauthenticated").inc()
        return False


def _for_people(shown: Mapping[str, object]) -> dict[str, str]:
    """Render the fields as text for a console, whose lines have their own time."""
    return {name: str(value) for name, value in shown.items() if name != "at"}


async def _write_lines(lines: Sequence[bytes]) -> None:
    # In a thread: the reader of standard error may be slow.
    text = b"\n".join(lines).decode()
    await asyncio.to_thread(logging.getLogger(REQUEST_LOGGER).info, text)


async def _write_rows(database: Database, rows: Sequence[bytes]) -> None:
    batch = (b"[" + b",".join(rows) + b"]").decode()
    try:
        async with answered_within(WRITE_SECONDS):
            answer = await database.call(
                "SELECT record_requests(CAST(:batch AS jsonb))", {"batch": batch}
            )
    except DBAPIError as error:  # a defect, which would recur at the next attempt
        telemetry.request_log_dropped_total.labels("refused").inc(len(rows))
        log.exception("request_log_refused", rows=len(rows), error=type(error.orig).__name__)
        return
    if answer[0][0]:
        telemetry.request_log_dropped_total.labels("clock").inc(answer[0][0])


def open_request_log(settings: Settings, database: Database) -> RequestLog:
    """Create the log from the settings."""
    return RequestLog(
        database if settings.request_log else None,
        log_format=settings.resolved_log_format,
        max_waiting=settings.request_log_max_waiting,
        unauthenticated_per_minute=settings.request_log_unauthenticated_per_minute,
    )


class _Batches:
    """A bounded queue that is drained at intervals, in batches and in order."""

    def __init__(
        self,
        kind: str,
        write: Callable[[Sequence[bytes]], Awaitable[None]],
        max_waiting: int,
        interval_seconds: float,
    ) -> None:
        self._kind = kind
        self._write = write
        self._max_waiting = max_waiting
        self._interval_seconds = interval_seconds
        self._waiting: deque[bytes] = deque()
        self._writing = asyncio.Lock()
        self._filled = asyncio.Event()
        self._task = asyncio.create_task(
            repeat(f"request_log_{kind}", self._flush_when_filled), name=f"request_log_{kind}"
        )
        self._is_away = False

    def put(self, item: bytes) -> None:
        """Add an item, or drop and count it if the queue is full."""
        if len(self._waiting) >= self._max_waiting:
            telemetry.request_log_dropped_total.labels(f"{self._kind}_full").inc()
            return
        self._waiting.append(item)
        self._filled.set()

    async def flush(self) -> None:
        """Write the queued items; on an error they stay queued, and the error is raised."""
        async with self._writing:
            while self._waiting:
                count = min(len(self._waiting), MOST_AT_ONCE)
                await self._write([self._waiting[index] for index in range(count)])
                for _ in range(count):
                    self._waiting.popleft()

    async def close(self) -> None:
        """Stop; write the queued items, or drop and count them if that takes too long."""
        self._task.cancel()
        await asyncio.wait([self._task])
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.flush()
        except (DatabaseUnavailable, TimeoutError):
            log.warning("request_log_incomplete", kind=self._kind, dropped=len(self._waiting))
            telemetry.request_log_dropped_total.labels("shutdown").inc(len(self._waiting))

    async def _flush_when_filled(self) -> None:
        await self._filled.wait()
        await asyncio.sleep(self._interval_seconds)
        self._filled.clear()
        try:
            await self.flush()
            self._is_away = False
        except DatabaseUnavailable:
            if not self._is_away:
                log.warning("request_log_waits_for_database", waiting=len(self._waiting))
            self._is_away = True
        finally:
            if self._waiting:
                self._filled.set()


class _PerMinute:
    """A token bucket, initially full."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._left: float = most
        self._at = time.monotonic()

    def take(self) -> bool:
        """Take one token; return False if none is left."""
        now = time.monotonic()
        refilled = (now - self._at) / MINUTE_SECONDS * self._most
        self._left, self._at = min(self._most, self._left + refilled), now
        if self._left < 1:
            return False
        self._left -= 1
        return True
