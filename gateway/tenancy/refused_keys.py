"""Refused keys: all are counted; refused admin keys are delayed per source address and audited.

Bounded: addresses in memory, delayed answers, and rows of the audit trail.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address

import structlog

from gateway import telemetry
from gateway.background import repeat
from gateway.db.audit import Action, record
from gateway.db.engine import Database, DatabaseUnavailable
from gateway.errors import RateLimited

FIRST_DELAY_SECONDS = 0.1
FORGIVEN_AFTER_SECONDS = 60.0
AUDIT_SECONDS = 60.0
MAX_SOURCES = 1024
MAX_AUDITED_SOURCES = 20
"""Rows per minute and worker; further addresses share one row."""
MAX_WAITING = 64
OTHERS = "other addresses"
SUSPECT_AFTER = 20
SUSPECTS_LOOKUPS = 2
IPV6_SITE_BITS = 64
MAX_SOURCE_CHARACTERS = 64
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Source:
    """Consecutive refusals of one address, each within a minute of the one before."""

    count: int
    last_at: float


@dataclass(frozen=True, slots=True)
class _Tally:
    """Refused admin keys of one address that are not audited yet."""

    count: int
    first_at: datetime
    last_at: datetime


class RefusedKeys:
    """A record of the source addresses of refused keys; one per worker."""

    def __init__(
        self,
        database: Database,
        *,
        max_delay_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._max_delay_seconds = max_delay_seconds
        self._clock = clock
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._tallies: dict[str, _Tally] = {}
        self._waiting = 0
        self._suspects = asyncio.Semaphore(SUSPECTS_LOOKUPS)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to write refused admin keys to the audit trail, once a minute."""
        self._task = asyncio.create_task(
            repeat("refused-keys", self._audit_when_due), name="refused-keys"
        )

    async def close(self) -> None:
        """Write the remaining rows, and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._audit_or_keep()

    async def refuse(self, kind: str, address: str) -> None:
        """Record a refused key; for an admin key, return only after a delay.

        The delay doubles with each refusal from the same address. Valid keys are never delayed.

        Raises:
            RateLimited: too many refusals are delayed already.
        """
        telemetry.keys_refused_total.labels(kind).inc()
        source = source_of(address)
        count = self._count(source)
        if kind != "admin":
            return
        now = datetime.now(UTC)
        self._tally(source, _Tally(1, now, now))
        delay = min(self._max_delay_seconds, FIRST_DELAY_SECONDS * 2 ** min(count - 1, 16))
        if delay <= 0:
            return
        if self._waiting >= MAX_WAITING:
            raise RateLimited(
                "Too many admin keys were refused in the last minute. Try again later.",
                retry_after_seconds=max(1, round(self._max_delay_seconds)),
            )
        self._waiting += 1
        try:
            await asyncio.sleep(delay)
        finally:
            self._waiting -= 1

    @asynccontextmanager
    async def lookup(self, address: str) -> AsyncIterator[None]:
        """Limit a look-up of a key in the database: addresses that guess share few connections."""
        source = self._sources.get(source_of(address))
        if source is None or source.count < SUSPECT_AFTER or self._is_forgiven(source):
            yield
            return
        async with self._suspects:
            yield

    async def audit(self) -> None:
        """Write one row for each address with refused admin keys, and reset the counts.

        Raises:
            DatabaseUnavailable: nothing was written; the next call tries again.
        """
        if not self._tallies:
            return
        written, self._tallies = self._tallies, {}
        is_written = False
        try:
            async with self._database.operator() as session:
                for source, tally in written.items():
                    await record(
                        session,
                        Action.OPERATOR_KEY_REFUSED,
                        tenant_id=None,
                        object_id=source,
                        after=asdict(tally),
                    )
            is_written = True
        finally:
            if not is_written:
                for source, tally in written.items():
                    self._tally(source, tally)

    def _count(self, source: str) -> int:
        found = self._sources.pop(source, None)
        if found is None or self._is_forgiven(found):
            found = _Source(0, 0.0)
        found.count += 1
        found.last_at = self._clock()
        self._sources[source] = found
        if len(self._sources) > MAX_SOURCES:
            self._sources.popitem(last=False)
        return found.count

    def _is_forgiven(self, source: _Source) -> bool:
        return self._clock() - source.last_at > FORGIVEN_AFTER_SECONDS

    def _tally(self, source: str, more: _Tally) -> None:
        if source not in self._tallies and len(self._tallies) >= MAX_AUDITED_SOURCES:
            source = OTHERS
        known = self._tallies.get(source, more)
        count = more.count if known is more else known.count + more.count
        self._tallies[source] = _Tally(
            count, min(known.first_at, more.first_at), max(known.last_at, more.last_at)
        )

    async def _audit_when_due(self) -> None:
        await asyncio.sleep(AUDIT_SECONDS)
        await self._audit_or_keep()

    async def _audit_or_keep(self) -> None:
        try:
            await self.audit()
        except DatabaseUnavailable:
            log.warning("refused_keys_not_audited", sources=len(self._tallies))


def source_of(address: str) -> str:
    """Return the address, or for IPv6 the network usually assigned to one subscriber."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:MAX_SOURCE_CHARACTERS] or "unknown"
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    site = int(parsed) >> (128 - IPV6_SITE_BITS) << (128 - IPV6_SITE_BITS)
    return f"{IPv6Address(site)}/{IPV6_SITE_BITS}"
