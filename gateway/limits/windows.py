"""The arithmetic of limits: a minute that slides, counted in two halves. No I/O, whole numbers.

What was counted in the minute before weighs as much as it still overlaps the last sixty seconds.
`gateway/limits/shared.py` says the same in Lua.
"""

from dataclasses import dataclass

from gateway.domain import LimitKind, RateLimit

WINDOW_MS = 60_000


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
class Count:
    """What a counter says: this minute's count, the last one's, and how old this minute is.

    For generations at once it is their number alone.
    """

    current: int
    previous: int = 0
    elapsed_ms: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a limit is used, once a request was let in or refused.

    `next_ms`: until there is one more, 0 where there is. `reset_ms`: until all of it is there
    again. Generations at once come back when one of them ends, which nobody knows.
    """

    limit: RateLimit
    remaining: int
    next_ms: int
    reset_ms: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of one request: let in or not, and every counter as it was found.

    `minute` is the one that was counted in, by the clock of whoever counted.
    """

    is_admitted: bool
    counts: tuple[Count, ...]
    minute: int


def used(count: Count) -> int:
    """How much of the last sixty seconds is used, rounded up."""
    weight_ms = WINDOW_MS - count.elapsed_ms
    return count.current - (-count.previous * weight_ms // WINDOW_MS)


def fits(value: int, count: Count, cost: int) -> bool:
    """Whether so much more stays within the limit."""
    return used(count) + cost <= value


def wait_ms(value: int, count: Count, cost: int) -> int | None:
    """How long until so much more fits if nobody takes any; None: never, it is too much at once."""
    if fits(value, count, cost):
        return 0
    if cost > value:
        return None
    left = value - count.current - cost
    if left >= 0:
        return WINDOW_MS - left * WINDOW_MS // count.previous - count.elapsed_ms
    # Not within this minute, but in the next one, where this one's count is the last one's.
    into_next_ms = WINDOW_MS - (value - cost) * WINDOW_MS // count.current
    return WINDOW_MS - count.elapsed_ms + into_next_ms


def standing(demand: Demand, value: int, count: Count, *, is_admitted: bool) -> Standing:
    """How a limit stands after the request; `value` is what of it counts here."""
    cost = demand.cost if is_admitted else 0
    if demand.is_lease:
        return Standing(demand.limit, max(0, value - count.current - cost), 0, 0)
    after = Count(count.current + cost, count.previous, count.elapsed_ms)
    return Standing(
        demand.limit,
        remaining=max(0, value - used(after)),
        next_ms=wait_ms(value, after, 1) or 0,
        reset_ms=_reset_ms(after),
    )


def _reset_ms(count: Count) -> int:
    if count.current:
        return 2 * WINDOW_MS - count.elapsed_ms
    return WINDOW_MS - count.elapsed_ms if count.previous else 0
