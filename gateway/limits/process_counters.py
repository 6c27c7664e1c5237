"""Counters of limits in this process: used without Redis, and as a fallback while Redis fails."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from gateway.limits.windows import LEASE_WAIT_MS, WINDOW_SECONDS, Demand, Found, Taken, Window


class LocalCounters:
    """Counters of the last minute, and leases of the generations under way in this process.

    Counters are kept in a young and an old set, exchanged every minute, so that an unused counter
    is dropped with its set.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._minute = 0
        self._young: dict[str, Window] = {}
        self._old: dict[str, Window] = {}
        self._leases: defaultdict[str, set[str]] = defaultdict(set)

    def take(self, demands: Sequence[Demand], values: Sequence[int], lease: str) -> Taken:
        """Count a request if it fits into every limit's value; otherwise count nothing."""
        now_ms = self._turn()
        second = now_ms // 1000
        # All of them first: each window must be of this second, even if an earlier limit refuses.
        used = [self._used(demand, second) for demand in demands]
        is_admitted = all(
            taken + demand.cost <= value
            for taken, demand, value in zip(used, demands, values, strict=True)
        )
        if is_admitted:
            self.add(demands, lease)
        found = tuple(
            self._found(demand, value, now_ms, is_admitted=is_admitted)
            for demand, value in zip(demands, values, strict=True)
        )
        return Taken(is_admitted, found, second)

    def add(self, demands: Sequence[Demand], lease: str) -> int:
        """Count an admitted request; return the second it is counted in."""
        second = self._turn() // 1000
        for demand in demands:
            if demand.is_lease:
                self._leases[demand.counter].add(lease)
            else:
                self._window(demand.counter, second).add(second, demand.cost)
        return second

    def release(self, demands: Sequence[Demand], lease: str) -> None:
        """Release the lease of a generation."""
        for demand in demands:
            if not demand.is_lease:
                continue
            leases = self._leases[demand.counter]
            leases.discard(lease)
            if not leases:
                del self._leases[demand.counter]

    def give_back(self, demands: Sequence[Demand], second: int) -> None:
        """Undo a request that was counted in that second."""
        for demand in demands:
            if not demand.is_lease:
                self._window(demand.counter, second).take_out(second, demand.cost)

    @property
    def leases(self) -> Mapping[str, set[str]]:
        """Leases of the generations under way here, by counter."""
        return self._leases

    @property
    def size(self) -> int:
        """Number of counters kept."""
        return len(self._young) + len(self._old) + len(self._leases)

    def _used(self, demand: Demand, second: int) -> int:
        if demand.is_lease:
            return len(self._leases.get(demand.counter, ()))
        return self._window(demand.counter, second).used

    def _found(self, demand: Demand, value: int, now_ms: int, *, is_admitted: bool) -> Found:
        if demand.is_lease:
            used = len(self._leases.get(demand.counter, ()))
            is_exceeded = not is_admitted and used >= value
            return Found(used, (LEASE_WAIT_MS if value else None) if is_exceeded else 0, 0)
        window = self._young[demand.counter]
        wait_ms = window.wait_ms(value, 1 if is_admitted else demand.cost, now_ms)
        return Found(window.used, wait_ms, window.reset_ms(now_ms))

    def _window(self, counter: str, second: int) -> Window:
        window = self._young.get(counter)
        if window is None:
            window = self._old.pop(counter) if counter in self._old else Window()
            self._young[counter] = window
        window.turn(second)
        return window

    def _turn(self) -> int:
        """Drop outdated counters; return the time in milliseconds."""
        now_ms = int(self._clock() * 1000)
        minute = now_ms // (WINDOW_SECONDS * 1000)
        if minute != self._minute:
            self._old = self._young if minute == self._minute + 1 else {}
            self._young = {}
            self._minute = minute
        return now_ms
