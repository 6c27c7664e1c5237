"""Sliding-window counters of one minute, with a resolution of seconds. No I/O, integers only.

`gateway/limits/redis_scripts.py` implements the same in Lua; a property test compares the answers.
"""

from collections import deque
from dataclasses import dataclass

from gateway.domain import LimitKind, RateLimit

WINDOW_SECONDS = 60
LEASE_WAIT_MS = 1000
"""Suggested wait for a lease: the end of a generation is unknown, but one of several is near."""


@dataclass(frozen=True, slots=True)
class Demand:
    """One limit that applies to a request, with its counter and the cost of the request."""

    limit: RateLimit
    counter: str
    cost: int

    @property
    def is_lease(self) -> bool:
        """True if the cost is returned when the generation ends."""
        return self.limit.kind is LimitKind.CONCURRENT


@dataclass(frozen=True, slots=True)
class Found:
    """State of a counter after a request was admitted or refused.

    `wait_ms`: after a refusal, time until the request fits (None: it never does); after an
    admission, time until one more fits. `reset_ms`: time until the usage is zero.
    """

    used: int
    wait_ms: int | None
    reset_ms: int


@dataclass(frozen=True, slots=True)
class Taken:
    """Outcome of one request, with the state of every counter in the order of its demands.

    `second` is the second it was counted in, by this process's clock or Redis'.
    """

    is_admitted: bool
    found: tuple[Found, ...]
    second: int


class Window:
    """A sliding window: the counts of the last sixty seconds, at most sixty numbers."""

    __slots__ = ("_counts", "used")

    def __init__(self) -> None:
        self._counts: deque[tuple[int, int]] = deque()
        self.used = 0

    def turn(self, second: int) -> None:
        """Drop counts older than a minute."""
        while self._counts and self._counts[0][0] <= second - WINDOW_SECONDS:
            self.used -= self._counts.popleft()[1]

    def add(self, second: int, cost: int) -> None:
        """Add a cost in this second, which must not precede the last one counted."""
        if self._counts and self._counts[-1][0] == second:
            cost_before = self._counts.pop()[1]
            self._counts.append((second, cost_before + cost))
        else:
            self._counts.append((second, cost))
        self.used += cost

    def take_out(self, second: int, cost: int) -> None:
        """Subtract a cost from that second, if it is still in the window."""
        for at, (counted_in, count) in enumerate(self._counts):
            if counted_in == second:
                undone = min(cost, count)
                self.used -= undone
                if count > undone:
                    self._counts[at] = (second, count - undone)
                else:
                    del self._counts[at]  # or `reset_ms` would wait for a second without usage
                return

    def wait_ms(self, value: int, cost: int, now_ms: int) -> int | None:
        """Return the time until `cost` fits if nothing else is counted; None if it never does."""
        if cost > value:
            return None
        over = self.used + cost - value
        if over <= 0:
            return 0
        for second, count in self._counts:
            over -= count
            if over <= 0:
                return (second + WINDOW_SECONDS) * 1000 - now_ms
        raise AssertionError

    def reset_ms(self, now_ms: int) -> int:
        """Return the time until the usage is zero."""
        if not self._counts:
            return 0
        return (self._counts[-1][0] + WINDOW_SECONDS) * 1000 - now_ms
