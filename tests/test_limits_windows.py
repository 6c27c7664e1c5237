"""The arithmetic of a minute that slides, and the limiter in one process, by a clock of its own."""

from contextlib import AsyncExitStack
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import LimitKind, RateLimit
from gateway.limits.local import LocalCounters
from gateway.limits.rate_limits import Limiter, LimitReached
from gateway.limits.windows import WINDOW_MS, Count, fits, wait_ms
from tests.limits_helpers import FakeClock, caller

KEY_ID = UUID("01a1f8d9-0000-7000-8000-000000000002")
COUNTS = st.builds(
    Count,
    current=st.integers(0, 2000),
    previous=st.integers(0, 2000),
    elapsed_ms=st.integers(0, WINDOW_MS - 1),
)


def per_minute(value: int, kind: LimitKind = LimitKind.REQUESTS) -> RateLimit:
    return RateLimit("tenant", kind, value)


def make_limiter(clock: FakeClock, *house: RateLimit) -> Limiter:
    return Limiter(
        tenant_defaults=[],
        house=house,
        process=KEY_ID,
        local=LocalCounters(clock),
        shared=None,
    )


async def admitted(limiter: Limiter, *limits: RateLimit, times: int = 1, images: int = 1) -> int:
    """How many of so many requests, one after the other, are let in."""
    count = 0
    for _ in range(times):
        try:
            async with limiter.admit(caller(*limits), images=images, house=None):
                count += 1
        except LimitReached:
            continue
    return count


def later(count: Count, milliseconds: int) -> Count:
    """The same counter when so much time has passed."""
    minutes, elapsed_ms = divmod(count.elapsed_ms + milliseconds, WINDOW_MS)
    if minutes == 0:
        return Count(count.current, count.previous, elapsed_ms)
    return Count(0, count.current if minutes == 1 else 0, elapsed_ms)


@given(COUNTS, st.integers(1, 1000), st.integers(1, 10))
def test_after_the_wait_that_is_named_the_request_fits_and_not_a_moment_before(
    count: Count, value: int, cost: int
) -> None:
    wait = wait_ms(value, count, cost)
    if wait is None:
        assert cost > value
        return
    assert fits(value, later(count, wait), cost)
    if wait:
        assert not fits(value, later(count, wait - 1), cost)


async def test_a_minute_slides_so_that_no_burst_at_its_edge_comes_twice() -> None:
    clock = FakeClock()
    limiter, most = make_limiter(clock), per_minute(60)
    clock.now += 59.5
    assert await admitted(limiter, most, times=100) == 60
    clock.now += 1
    # The next minute by the clock has begun; of the last one 59.5 in 60 still count.
    assert await admitted(limiter, most, times=100) == 0
    clock.now += 29.5
    assert await admitted(limiter, most, times=100) == 30
    clock.now += 120
    assert await admitted(limiter, most, times=100) == 60


async def test_the_wait_in_the_refusal_is_enough() -> None:
    clock = FakeClock()
    limiter, most = make_limiter(clock), per_minute(5)
    assert await admitted(limiter, most, times=9) == 5
    with pytest.raises(LimitReached) as refused:
        async with limiter.admit(caller(most), images=1, house=None):
            pass
    assert refused.value.retry_after_seconds is not None
    clock.now += refused.value.retry_after_seconds
    assert await admitted(limiter, most) == 1


async def test_every_image_of_a_request_counts() -> None:
    limiter = make_limiter(FakeClock())
    images = per_minute(10, LimitKind.IMAGES)
    assert await admitted(limiter, images, times=5, images=4) == 2
    assert await admitted(limiter, images, images=2) == 1


async def test_a_request_that_no_minute_can_hold_is_told_not_to_come_again() -> None:
    limiter = make_limiter(FakeClock())
    with pytest.raises(LimitReached) as refused:
        async with limiter.admit(caller(per_minute(3, LimitKind.IMAGES)), images=4, house=None):
            pass
    assert (refused.value.retry_after_seconds, refused.value.retry) == (None, False)


async def test_a_limit_of_nothing_lets_nothing_in() -> None:
    limiter = make_limiter(FakeClock())
    for kind in LimitKind:
        assert await admitted(limiter, per_minute(0, kind)) == 0


async def test_who_is_refused_by_one_limit_uses_up_none_of_the_others() -> None:
    clock = FakeClock()
    limiter = make_limiter(clock)
    wide = per_minute(10)
    narrow = RateLimit("tenant", LimitKind.IMAGES, 1)
    assert await admitted(limiter, wide, narrow, times=8) == 1
    assert await admitted(limiter, wide, times=20) == 9


async def test_generations_at_once_end_with_their_block() -> None:
    limiter = make_limiter(FakeClock())
    two = per_minute(2, LimitKind.CONCURRENT)
    async with AsyncExitStack() as running:
        for _ in range(2):
            await running.enter_async_context(limiter.admit(caller(two), images=1, house=None))
        assert await admitted(limiter, two) == 0
    assert await admitted(limiter, two, times=3) == 3


async def test_live_and_test_calls_and_different_owners_are_counted_apart() -> None:
    limiter = make_limiter(FakeClock())
    one = per_minute(1)
    of_key = RateLimit("key", LimitKind.REQUESTS, 1)
    calls = [
        caller(one),
        caller(one, livemode=False),
        caller(of_key, api_key_id=KEY_ID),
        caller(of_key, api_key_id=UUID(int=7)),
        caller(one, tenant_id=UUID(int=8)),
    ]
    for who in calls:
        async with limiter.admit(who, images=1, house=None):
            pass
        with pytest.raises(LimitReached):
            async with limiter.admit(who, images=1, house=None):
                pass


async def test_what_the_house_key_did_not_send_does_not_count_for_the_others() -> None:
    limiter = make_limiter(FakeClock(), RateLimit("house", LimitKind.REQUESTS, 1))
    async with limiter.admit(caller(), images=1, house="openai"):
        pass  # refused by its budget, say
    async with limiter.admit(caller(), images=1, house="openai") as admission:
        admission.is_sent = True
    with pytest.raises(LimitReached):
        async with limiter.admit(caller(), images=1, house="openai"):
            pass
    async with limiter.admit(caller(), images=1, house=None):
        pass  # with a key of one's own


async def test_counters_of_callers_that_are_gone_are_let_go() -> None:
    clock = FakeClock()
    local = LocalCounters(clock)
    limiter = Limiter(tenant_defaults=[], house=[], process=KEY_ID, local=local, shared=None)
    for number in range(500):
        who = caller(per_minute(5), per_minute(5, LimitKind.CONCURRENT), tenant_id=UUID(int=number))
        async with limiter.admit(who, images=1, house=None):
            pass
    clock.now += 120
    assert await admitted(limiter, per_minute(5)) == 1
    assert local.size == 1
