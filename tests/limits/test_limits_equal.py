"""Counters in Redis and in this process: the same requests at the same time, the same answers."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain import LimitKind, RateLimit, SecretText
from gateway.limits.process_counters import LocalCounters
from gateway.limits.redis_counters import PREFIX, SharedCounters
from gateway.limits.windows import Demand, Taken
from tests.limits_helpers import Valkey, running_valkey

STEP_SECONDS = 0.125
"""Exact in binary, so that both clocks round to the same millisecond."""
CLOCK_KEY = PREFIX + "clock"
CLOCK = f"local now = tonumber(redis.call('GET', '{CLOCK_KEY}'))"
KINDS = list(LimitKind)
NAMES = count()


@dataclass(frozen=True)
class Take:
    """Requests that arrive at once: for each the values and the costs of its limits."""

    requests: tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class Wait:
    """Time passes."""

    steps: int


@dataclass(frozen=True)
class End:
    """An earlier request ends; `is_uncounted` gives its counts back."""

    which: int
    is_uncounted: bool


Step = Take | Wait | End
limits = st.tuples(st.integers(0, 8), st.integers(1, 6))
requests = st.tuples(*[limits] * len(KINDS))
steps = st.one_of(
    st.builds(Take, st.lists(requests, min_size=1, max_size=4).map(tuple)),
    st.builds(Wait, st.one_of(st.integers(1, 16), st.integers(400, 500))),
    st.builds(End, st.integers(0, 100), st.booleans()),
)


class Clock:
    """The time of both: of the process, and of the scripts, which read it from a key."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._now = 1200.0
        self.add(0)

    def __call__(self) -> float:
        return self._now

    def add(self, seconds: float) -> None:
        self._now += seconds
        self._client.set(CLOCK_KEY, int(self._now * 1000))


@pytest.fixture(scope="module")
def valkey_server() -> Iterator[Valkey]:
    with running_valkey() as running:
        yield running


@settings(max_examples=100, deadline=None)
@given(history=st.lists(steps, max_size=30))
def test_redis_and_the_process_give_the_same_answers(
    valkey_server: Valkey, history: list[Step]
) -> None:
    asyncio.run(compare(valkey_server, history))


async def compare(server: Valkey, history: Sequence[Step]) -> None:
    clock = Clock(server.client)
    local = LocalCounters(clock)
    shared = SharedCounters(
        SecretText(server.url),
        process="the-process",
        leases=dict,
        timeout_seconds=30,
        lease_seconds=3600,
        clock=CLOCK,
    )
    await shared.open()
    name = next(NAMES)
    admitted: list[tuple[list[Demand], str, int]] = []
    for step in history:
        match step:
            case Wait(number):
                clock.add(number * STEP_SECONDS)
            case Take(wanted):
                arrived = [
                    (demands_of(name, request), f"lease-{next(NAMES)}") for request in wanted
                ]
                answers = await asyncio.gather(*(shared.take(*one) for one in arrived))
                assert answers == [take(local, *one) for one in arrived]
                admitted += [
                    (*one, answer.second)
                    for one, answer in zip(arrived, answers, strict=True)
                    if answer is not None and answer.is_admitted
                ]
            case End(which, is_uncounted) if admitted:
                demands, lease, second = admitted.pop(which % len(admitted))
                for counters in (local, shared):
                    counters.release(demands, lease)
                    if is_uncounted:
                        counters.give_back(demands, second)
            case _:
                pass
    await shared.close()


def take(local: LocalCounters, demands: Sequence[Demand], lease: str) -> Taken:
    return local.take(demands, [demand.limit.value for demand in demands], lease)


def demands_of(name: int, request: Sequence[tuple[int, int]]) -> list[Demand]:
    return [
        Demand(
            RateLimit("tenant", kind, value),
            counter=f"{kind}:{name}",
            cost=cost if kind is LimitKind.IMAGES else 1,
        )
        for kind, (value, cost) in zip(KINDS, request, strict=True)
    ]
