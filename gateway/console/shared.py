"""Values that many viewers watch at once, computed for all of them together."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """A value that is computed at most once in `seconds`, for all that ask.

    Ten open overviews then cost the database as much as one.
    """

    def __init__(
        self,
        compute: Callable[[], Awaitable[T]],
        *,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._compute = compute
        self._seconds = seconds
        self._clock = clock
        self._lock = asyncio.Lock()
        self._found: tuple[float, T] | None = None

    async def get(self) -> T:
        """Return the value, computed anew if it is too old; an error is not kept."""
        async with self._lock:
            now = self._clock()
            if self._found is None or now - self._found[0] >= self._seconds:
                self._found = (now, await self._compute())
            return self._found[1]
