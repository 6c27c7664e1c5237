"""A fair, bounded semaphore with a short, bounded queue.

A request that would wait too long is refused at once. Owners (tenants) take turns, so that one that
sends more than its share delays only itself.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

from gateway import telemetry
from gateway.errors import Unavailable

REMEMBERED_STAYS = 16
OWNER_SHARE = 2
"""One owner takes at most half of the room to wait in."""
BUSY = "The gateway is busy. Nothing was bought; try again."
CLOSING = "This gateway is shutting down. Nothing was bought; try again."


@dataclass(frozen=True, slots=True)
class GateLimits:
    """The most inside at a time, of one owner and altogether; the queue, and its longest wait."""

    most: int
    most_of_one: int
    max_waiting: int
    wait_seconds: float


class GateSlot:
    """One slot inside the gate, held until `leave`."""

    __slots__ = ("_entered", "_gate", "_owner")

    def __init__(self, gate: "Gate", owner: Hashable, entered: float) -> None:
        self._gate: Gate | None = gate
        self._owner = owner
        self._entered = entered

    @property
    def is_left(self) -> bool:
        """True once it has been left."""
        return self._gate is None

    def leave(self) -> None:
        """Let the next one in; a second time it does nothing."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.left(self._owner, self._entered)


_current: ContextVar[GateSlot | None] = ContextVar("slot", default=None)


def current_slot() -> GateSlot | None:
    """The place of the request that is being served; None where it has none, or has left it."""
    slot = _current.get()
    return None if slot is None or slot.is_left else slot


def set_current_slot(slot: GateSlot | None) -> None:
    """Make a slot the request's, for this task and those that it starts."""
    _current.set(slot)


def leave_current_slot() -> None:
    """Leave the request's slot, if it has one: what follows waits for something else."""
    slot = _current.get()
    if slot is not None:
        slot.leave()


class Gate:
    """A fair, bounded semaphore with a bounded queue; `name` is its label in the metrics."""

    def __init__(
        self, name: str, limits: GateLimits, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._inside: Counter[Hashable] = Counter()
        self._count = 0
        self._queues: dict[Hashable, deque[asyncio.Future[GateSlot]]] = {}
        self._waiting = 0
        self._stay_seconds = 0.0
        self._is_closed = False
        self._is_ending = False
        self._shed = telemetry.shed_total.labels(name)
        self._in_queue = telemetry.queue_waiting.labels(name)
        self._waits = telemetry.queue_wait_seconds.labels(name)

    @property
    def inside(self) -> int:
        """The number inside."""
        return self._count

    @property
    def waiting(self) -> int:
        """The number waiting."""
        return self._waiting

    @asynccontextmanager
    async def slot(self, owner: Hashable) -> AsyncIterator[GateSlot]:
        """Be inside for the length of the block, or until its slot is left.

        Raises:
            Unavailable: see `join`.
        """
        slot = await self.enter(owner)
        try:
            yield slot
        finally:
            slot.leave()

    async def enter(self, owner: Hashable) -> GateSlot:
        """Go in, after a wait where one is needed.

        Raises:
            Unavailable: see `join`.
        """
        slot = self.take(owner)
        if slot is not None:
            return slot
        joined = self.join(owner)
        try:
            return await joined
        except asyncio.CancelledError:
            self.abandon(owner, joined)
            raise

    def check(self, owner: Hashable) -> None:
        """Raise what `take` and `join` would."""
        if self._is_closed:
            raise self._refusal(CLOSING)
        if not self._has_room(owner):
            self._refuse_long_wait(owner)

    def take(self, owner: Hashable) -> GateSlot | None:
        """Go in where there is room; None where one would have to wait.

        Raises:
            Unavailable: the gate is closed.
        """
        if self._is_closed:
            raise self._refusal(CLOSING)
        return self._let_in(owner) if self._has_room(owner) else None

    def join(self, owner: Hashable) -> "asyncio.Future[GateSlot]":
        """Wait for a slot. The caller must leave the slot, or `abandon` the wait.

        Raises:
            Unavailable: the wait would be too long; the future raises it where it was.
        """
        self._refuse_long_wait(owner)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[GateSlot] = loop.create_future()
        self._queues.setdefault(owner, deque()).append(future)
        self._waiting += 1
        timer = loop.call_later(self._limits.wait_seconds, self._refuse, owner, future, BUSY)
        self._in_queue.inc()
        future.add_done_callback(partial(self._waited, timer, self._clock()))
        return future

    def _waited(
        self, timer: asyncio.TimerHandle, since: float, future: "asyncio.Future[GateSlot]"
    ) -> None:
        timer.cancel()
        self._in_queue.dec()
        if not future.cancelled() and future.exception() is None:
            self._waits.observe(self._clock() - since)

    def abandon(self, owner: Hashable, future: "asyncio.Future[GateSlot]") -> None:
        """Wait no longer; a slot that was given meanwhile goes to the next."""
        if future.done() and not future.cancelled():
            if future.exception() is None:
                future.result().leave()
            return
        self._forget(owner, future)
        future.cancel()

    def close(self) -> None:
        """Refuse new entries and those waiting."""
        self._is_closed = True
        self.end_waiting()

    def end_waiting(self) -> None:
        """Refuse requests that wait or would have to; free slots are still given."""
        self._is_ending = True
        for owner, queue in list(self._queues.items()):
            for future in list(queue):
                self._refuse(owner, future, CLOSING)

    def left(self, owner: Hashable, entered: float) -> None:
        """Free a slot that was left (`GateSlot.leave`)."""
        # One that stayed for very long says little of how long the next ones will.
        stayed = min(self._clock() - entered, self._limits.wait_seconds)
        self._stay_seconds += (stayed - self._stay_seconds) / REMEMBERED_STAYS
        self._count -= 1
        if self._inside[owner] == 1:
            del self._inside[owner]
        else:
            self._inside[owner] -= 1
        if self._waiting:
            self._let_next_in()

    def _has_room(self, owner: Hashable) -> bool:
        limits = self._limits
        return self._count < limits.most and self._inside[owner] < limits.most_of_one

    def _may_wait(self, owner: Hashable) -> bool:
        """True if there is room in the queue, and the expected wait is short enough."""
        limits, queue = self._limits, self._queues.get(owner)
        own = 0 if queue is None else len(queue)
        if self._waiting >= limits.max_waiting or own >= max(1, limits.max_waiting // OWNER_SHARE):
            return False
        owners = len(self._queues) + (queue is None)
        turns = min(self._waiting + 1, (own + 1) * owners)
        waits = (turns / limits.most, (own + 1) / min(limits.most, limits.most_of_one))
        return max(waits) * self._stay_seconds <= limits.wait_seconds

    def _refuse_long_wait(self, owner: Hashable) -> None:
        if self._is_ending:
            raise self._refusal(CLOSING)
        if not self._may_wait(owner):
            raise self._refusal(BUSY)

    def _let_in(self, owner: Hashable) -> GateSlot:
        self._count += 1
        self._inside[owner] += 1
        return GateSlot(self, owner, self._clock())

    def _let_next_in(self) -> None:
        """The first of the owner whose turn it is, unless it has its share; then the next one's."""
        for owner in [owner for owner in self._queues if self._has_room(owner)]:
            queue = self._queues.pop(owner)
            while queue:
                future = queue.popleft()
                self._waiting -= 1
                if not future.done():  # one that is has been cancelled
                    if queue:
                        self._queues[owner] = queue  # at the end: the others come first
                    future.set_result(self._let_in(owner))
                    return

    def _refuse(self, owner: Hashable, future: "asyncio.Future[GateSlot]", message: str) -> None:
        if not future.done():
            self._forget(owner, future)
            future.set_exception(self._refusal(message))

    def _forget(self, owner: Hashable, future: "asyncio.Future[GateSlot]") -> None:
        queue = self._queues.get(owner)
        if queue is not None and future in queue:
            queue.remove(future)
            self._waiting -= 1
            if not queue:
                del self._queues[owner]

    def _refusal(self, message: str) -> Unavailable:
        self._shed.inc()
        return Unavailable(message, retry_after_seconds=1)
