"""Load for drills: requests that start at fixed intervals, however long each of them takes."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class Arrivals(Generic[T]):
    """Starts a task at fixed intervals, without waiting for the one before."""

    start: Callable[[int], Coroutine[None, None, T]]
    seconds_between: float
    tasks: list[asyncio.Task[T]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        self._next(asyncio.get_running_loop().time())

    async def end(self) -> list[T]:
        assert self.timer is not None
        self.timer.cancel()
        return await asyncio.gather(*self.tasks)

    def _next(self, due: float) -> None:
        self.tasks.append(asyncio.create_task(self.start(len(self.tasks))))
        due += self.seconds_between
        self.timer = asyncio.get_running_loop().call_at(due, self._next, due)


async def until_passed(seconds: float) -> None:
    """Return when a drill has lasted this long; its load continues meanwhile."""
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, passed.set)
    await passed.wait()
