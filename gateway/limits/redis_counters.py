"""Counters of limits in Redis or Valkey, shared by all processes, with batched round trips.

Redis may fail at any moment. Requests wait for it no longer than a fixed timeout, and while it
fails they do not use it: a background task probes until it is back.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway import telemetry
from gateway.background import repeat
from gateway.domain import SecretText
from gateway.errors import ConfigurationError
from gateway.limits.redis_errors import explain
from gateway.limits.redis_scripts import EXCHANGE, KEEP, SERVER_CLOCK
from gateway.limits.windows import Demand, Found, Taken

PREFIX = "{image-gateway}:limits:"
"""The braces keep all keys in one hash slot, in case the address is a cluster's proxy."""
PROCESSES = PREFIX + "processes"
MAX_BATCH = 64
PROBE_SECONDS = 0.25
CONNECT_SECONDS = 1.0
BEATS_PER_LEASE = 3
PASSES = 4
"""Turns of the event loop after a timeout, enough for an answer in the socket to be parsed."""
HEADER = 2
"""Numbers in an answer before those of the requests."""
AWAY = (RedisError, OSError, TimeoutError)
log = structlog.get_logger(__name__)

T = TypeVar("T")
Leases = Callable[[], Mapping[str, Collection[str]]]


@dataclass(slots=True)
class _Message:
    """One command of the next exchange with Redis, and the future that awaits its answer."""

    keys: list[str]
    arguments: list[str | int]
    counters: int = 0
    answer: "asyncio.Future[Taken | None] | None" = field(default=None)


class SharedCounters:
    """One connection with one exchange at a time; commands that arrive meanwhile form the next.

    `leases` returns the generations under way in this process. `processes` is the number of
    gateway processes when Redis last answered. `trouble` is the reason while Redis cannot be used.
    `clock` is the Lua that sets `now` in the scripts.
    """

    def __init__(
        self,
        url: SecretText,
        *,
        process: str,
        leases: Leases,
        timeout_seconds: float,
        lease_seconds: float,
        clock: str = SERVER_CLOCK,
    ) -> None:
        self._client = _client(url)
        self._process = process
        self._leases = leases
        self._timeout_seconds = timeout_seconds
        self._lease_ms = math.ceil(lease_seconds * 1000)
        self._beat_seconds = lease_seconds / BEATS_PER_LEASE
        self._waiting: list[_Message] = []
        self._sending: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._look = asyncio.Event()
        self._is_away = True
        self._scripts = clock + EXCHANGE, clock + KEEP
        self._exchange_hash = ""
        self.processes = 1
        self.trouble: str | None = None

    @property
    def is_away(self) -> bool:
        """True while Redis is not used."""
        return self._is_away

    async def open(self) -> None:
        """Connect, and start the background task; an unreachable Redis is not an error."""
        await self._beat()
        if self._is_away:
            log.warning("limits_not_shared", reason=self.trouble)
        telemetry.limits_shared.set(not self._is_away)
        self._keeping = asyncio.create_task(
            repeat("limits-keeper", self._keep), name="limits-keeper"
        )

    async def close(self) -> None:
        """Deregister this process and close the connection, if Redis responds."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=self._timeout_seconds)
        for task in (self._keeping, self._sending):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._answer(self._waiting, [])
        try:
            if not self._is_away:
                gone = self._client.zrem(PROCESSES, self._process)
                await _within(self._timeout_seconds, gone)
            await _within(CONNECT_SECONDS, self._client.aclose())
        except AWAY as error:
            log.info("limits_closed_without_goodbye", reason=type(error).__name__)

    async def take(self, demands: Sequence[Demand], lease: str) -> Taken | None:
        """Count a request against all its limits or none; return None while Redis fails."""
        if self._is_away:
            return None
        arguments: list[str | int] = ["take", lease, self._lease_ms, len(demands)]
        for demand in demands:
            kind = "lease" if demand.is_lease else "window"
            arguments += (kind, demand.limit.value, demand.cost)
        answer: asyncio.Future[Taken | None] = asyncio.get_running_loop().create_future()
        self._say(
            _Message(
                keys=[PREFIX + demand.counter for demand in demands],
                arguments=arguments,
                counters=len(demands),
                answer=answer,
            )
        )
        return await answer

    def release(self, demands: Sequence[Demand], lease: str) -> None:
        """Release a lease without waiting; if the command is lost, the lease expires by itself."""
        keys = [PREFIX + demand.counter for demand in demands if demand.is_lease]
        if keys:
            self._say(_Message(keys, ["release", lease, len(keys)]))

    def give_back(self, demands: Sequence[Demand], second: int) -> None:
        """Undo a request that was counted in that second of Redis' clock."""
        windows = [demand for demand in demands if not demand.is_lease]
        if windows:
            keys = [PREFIX + demand.counter for demand in windows]
            costs = [demand.cost for demand in windows]
            arguments: list[str | int] = ["give_back", second, len(costs), *costs]
            self._say(_Message(keys, arguments))

    def _say(self, message: _Message) -> None:
        if self._is_away:
            return
        self._waiting.append(message)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send(), name="limits-sender")

    async def _send(self) -> None:
        try:
            while self._waiting and not self.is_away:
                async with self._turn:
                    if self._is_away:  # the previous exchange has failed
                        break
                    batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                    try:
                        await self._exchange(batch)
                    finally:
                        self._answer(batch, [])  # resolve what is still unanswered with None
        finally:
            self._sending = None
            left, self._waiting = self._waiting, []
            self._answer(left, [])

    async def _exchange(self, batch: list[_Message]) -> None:
        keys = [PROCESSES, *(key for message in batch for key in message.keys)]
        arguments = [self._process, *(a for message in batch for a in message.arguments)]
        try:
            said = await _within(
                self._timeout_seconds,
                self._client.evalsha(self._exchange_hash, len(keys), *keys, *arguments),
            )
        except AWAY as error:
            self._lose(error)
            return
        self._answer(batch, [int(number) for number in said.split()])

    def _answer(self, batch: Sequence[_Message], numbers: Sequence[int]) -> None:
        """Resolve the waiting futures with the answer, or with None if there are no numbers."""
        at = HEADER
        for message in batch:
            if message.answer is None:
                continue
            end = at + 1 + 3 * message.counters
            taken = _read(numbers[0], numbers[at:end]) if numbers else None
            at = end
            if not message.answer.done():
                message.answer.set_result(taken)
        if numbers and not numbers[1]:
            self._look.set()  # Redis has forgotten this process, so it has lost its leases too

    def _lose(self, error: Exception) -> None:
        """Stop using Redis until a probe succeeds."""
        self.trouble = explain(error)
        if self._is_away:
            return
        self._is_away = True
        self._look.set()
        telemetry.limits_shared.set(0)
        log.warning("limits_not_shared", reason=self.trouble, processes=self.processes)

    async def _keep(self) -> None:
        try:
            async with asyncio.timeout(PROBE_SECONDS if self._is_away else self._beat_seconds):
                await self._look.wait()
        except TimeoutError:
            pass
        self._look.clear()
        await self._beat()

    async def _beat(self) -> None:
        """Send a heartbeat that renews the leases; use Redis again if it had failed and answers."""
        exchange, keep = self._scripts
        async with self._turn:
            held = {counter: list(leases) for counter, leases in self._leases().items()}
            arguments: list[str | int] = [self._process, self._lease_ms]
            for leases in held.values():
                arguments += (len(leases), *leases)
            keys = [PROCESSES, *(PREFIX + counter for counter in held)]
            try:
                if self._is_away:
                    loading = self._client.script_load(exchange)
                    self._exchange_hash = await _within(CONNECT_SECONDS, loading)
                said = self._client.eval(keep, len(keys), *keys, *arguments)
                self.processes = await _within(self._timeout_seconds, said)
            except AWAY as error:
                self._lose(error)
                return
        if self._is_away:
            self._is_away, self.trouble = False, None
            telemetry.limits_shared.set(1)
            log.info("limits_shared", processes=self.processes)


async def _within(seconds: float, work: Awaitable[T]) -> T:
    """Await `work` with a timeout.

    When the timeout fires, an answer that has already arrived is still read: in a busy process the
    timer may be late, which says nothing about Redis.

    Raises:
        TimeoutError: no answer came in time.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        for _ in range(PASSES):
            if task.done():
                return task.result()
            await asyncio.sleep(0)
    finally:
        task.cancel()  # no effect if it is done
    await asyncio.wait({task})
    raise TimeoutError


def _read(second: int, numbers: Sequence[int]) -> Taken:
    admitted, *rest = numbers
    found = tuple(
        Found(used, None if wait_ms < 0 else wait_ms, reset_ms)
        for used, wait_ms, reset_ms in zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    )
    return Taken(bool(admitted), found, second)


def _client(url: SecretText) -> "Redis":
    # valkey:// is the same protocol; the client knows its older name only.
    text = url.reveal()
    if text.startswith("valkey"):
        text = "redis" + text.removeprefix("valkey")
    try:
        client = Redis.from_url(
            text,
            protocol=2,
            # Timeouts apply to whole exchanges, so the client itself must neither wait nor retry.
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=None,
        )
        # Options in the URL's query are validated only when a connection object is made.
        client.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # not annotated
    except (TypeError, ValueError, RedisError) as error:
        raise ConfigurationError(
            f"GATEWAY_REDIS_URL has an option that cannot be used: {error}"
        ) from None
    return client
