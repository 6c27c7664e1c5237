"""Counters in this process: all there is without Redis, and its stand-in while Redis is away."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from gateway.limits.windows import WINDOW_MS, Count, Demand


class LocalCounters:
    """Counts of this minute and the last one, and the generations that are under way here.

    Both minutes are dropped whole, so what is kept is bounded by who called within two minutes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._minute = 0
        self._current: dict[str, int] = {}
        self._previous: dict[str, int] = {}
        self._leases: defaultdict[str, set[str]] = defaultdict(set)

    def counts(self, demands: Sequence[Demand]) -> tuple[Count, ...]:
        """What the counters of these demands say."""
        elapsed_ms = self._turn()
        return tuple(
            Count(len(self._leases.get(demand.counter, ())))
            if demand.is_lease
            else Count(
                self._current.get(demand.counter, 0),
                self._previous.get(demand.counter, 0),
                elapsed_ms,
            )
            for demand in demands
        )

    def add(self, demands: Sequence[Demand], lease: str) -> int:
        """Count a request that was let in; returns the minute it is counted in."""
        self._turn()
        for demand in demands:
            if demand.is_lease:
                self._leases[demand.counter].add(lease)
            else:
                self._current[demand.counter] = self._current.get(demand.counter, 0) + demand.cost
        return self._minute

    def release(self, demands: Sequence[Demand], lease: str) -> None:
        """End a generation."""
        for demand in demands:
            if not demand.is_lease:
                continue
            leases = self._leases[demand.counter]
            leases.discard(lease)
            if not leases:
                del self._leases[demand.counter]

    def give_back(self, demands: Sequence[Demand], minute: int) -> None:
        """Take out what was counted in `minute`, as if it had not been asked for."""
        self._turn()
        counts = {self._minute: self._current, self._minute - 1: self._previous}.get(minute, {})
        for demand in demands:
            if not demand.is_lease and demand.counter in counts:
                counts[demand.counter] = max(0, counts[demand.counter] - demand.cost)

    @property
    def leases(self) -> Mapping[str, set[str]]:
        """The generations under way here, by counter."""
        return self._leases

    @property
    def size(self) -> int:
        """How many counters are kept."""
        return len(self._current) + len(self._previous) + len(self._leases)

    def _turn(self) -> int:
        """Begin a new minute where it is time; returns how old this one is."""
        minute, elapsed_ms = divmod(int(self._clock() * 1000), WINDOW_MS)
        if minute != self._minute:
            self._previous = self._current if minute == self._minute + 1 else {}
            self._current = {}
            self._minute = minute
        return elapsed_ms
