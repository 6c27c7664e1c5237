"""Deadlines that do not count delays of the waiting process itself."""

import asyncio
from types import TracebackType

TICK_SECONDS = 0.05
MOST_LATE_TICKS = 20
"""The upper bound for an event loop that never catches up."""


class Deadline:
    """An `asyncio.timeout` that does not count time in which the event loop was blocked.

    A loop that was blocked for a second finds its timers due before it reads an answer that arrived
    meanwhile. Time is therefore counted in ticks: a late tick counts once, and a late last tick
    is followed by another, so that the loop reads its sockets in between.

    Raises:
        TimeoutError: at the end of the block, if `seconds` of the loop's own time have passed.
    """

    __slots__ = ("_due", "_late_ticks", "_left_seconds", "_loop", "_timeout", "_timer")

    def __init__(self, seconds: float) -> None:
        self._left_seconds = seconds
        self._late_ticks = 0

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        self._set_timer(min(self._left_seconds, TICK_SECONDS))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _set_timer(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds
        self._timer = self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        was_late = self._loop.time() - self._due > TICK_SECONDS
        self._left_seconds -= TICK_SECONDS
        if self._left_seconds > 0:
            self._set_timer(min(self._left_seconds, TICK_SECONDS))
        elif was_late and self._late_ticks < MOST_LATE_TICKS:
            self._late_ticks += 1
            self._set_timer(TICK_SECONDS)
        else:
            self._timeout.reschedule(self._loop.time())
