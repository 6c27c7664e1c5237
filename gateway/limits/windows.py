"""What limits are counted with: a minute that slides, by the second. No I/O, whole numbers.

`gateway/limits/redis_scripts.py` says the same in Lua.
"""

from collections import deque
from dataclasses import dataclass

from gateway.domain import LimitKind, RateLimit

WINDOW_SECONDS = 60
LEASE_WAIT_MS = 1000
"""Nobody knows when a generation ends; most take longer, but one of several may end any time."""


@dataclass(frozen=True, slots=True)
class Demand:
    """One limit that applies to one request: the counter it is kept in, and what is asked for."""

    limit: RateLimit
    counter: str
    cost: int

    @property
    def is_lease(self) -> bool:
        """Whether what is taken comes back when the generation ends."""
        return self.limit.kind is LimitKind.CONCURRENT


@dataclass(frozen=True, slots=True)
class Found:
    """How a counter stands once a request was let in or refused.

    `wait_ms`: for a request that was refused, until what it asks for fits (None: it never does);
    for one that was let in, until one more fits. `reset_ms`: until all that is used is free again.
    """

    used: int
    wait_ms: int | None
    reset_ms: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of one request, with every counter in the order of its demands.

    `second` is the one that it was counted in, by the clock of whoever counted.
    """

    is_admitted: bool
    found: tuple[Found, ...]
    second: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How a limit stands for the caller; `next_ms`: until there is one more where there is none."""

    limit: RateLimit
    remaining: int
    next_ms: int
    reset_ms: int


class Window:
    """What was counted in the last sixty seconds, second by second; at most sixty numbers."""

    __slots__ = ("_counts", "used")

    def __init__(self) -> None:
        self._counts: deque[tuple[int, int]] = deque()
        self.used = 0

    def turn(self, second: int) -> None:
        """Let go of what is older than a minute."""
        while self._counts and self._counts[0][0] <= second - WINDOW_SECONDS:
            self.used -= self._counts.popleft()[1]

    def add(self, second: int, cost: int) -> None:
        """Count so much in this second, which is the last one there is or a later one."""
        if self._counts and self._counts[-1][0] == second:
            cost_before = self._counts.pop()[1]
            self._counts.append((second, cost_before + cost))
        else:
            self._counts.append((second, cost))
        self.used += cost

    def take_out(self, second: int, cost: int) -> None:
        """Undo what was counted in that second, if it still counts."""
        for at, (counted_in, count) in enumerate(self._counts):
            if counted_in == second:
                undone = min(cost, count)
                self._counts[at] = (second, count - undone)
                self.used -= undone

    def wait_ms(self, value: int, cost: int, now_ms: int) -> int | None:
        """How long until so much more fits if nobody takes any; None: it is too much at once."""
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
        """How long until nothing is used any more."""
        if not self._counts:
            return 0
        return (self._counts[-1][0] + WINDOW_SECONDS) * 1000 - now_ms
