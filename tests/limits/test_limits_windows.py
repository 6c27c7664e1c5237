"""The sliding minute and the limiter of one process, with a clock that the test moves."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import LimitKind, RateLimit, Standing
from gateway.limits.enforcement import Limiter, LimitReached
from gateway.limits.process_counters import LocalCounters
from gateway.limits.windows import LEASE_WAIT_MS, Window
from tests.limits_helpers import FakeClock, caller

KEY_ID = UUID("01a1f8d9-0000-7000-8000-000000000002")


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
    """The number of `times` successive requests that are admitted."""
    count = 0
    for _ in range(times):
        try:
            async with limiter.admit(caller(*limits), images=images, house=None):
                count += 1
        except LimitReached:
            continue
    return count


@given(
    st.lists(st.tuples(st.integers(0, 90_000), st.integers(1, 12)), max_size=200),
    st.integers(1, 30),
    st.integers(1, 10),
)
def test_a_window_never_holds_more_than_its_limit_and_its_waits_are_exact(
    calls: list[tuple[int, int]], value: int, cost: int
) -> None:
    window, let_in, now_ms = Window(), [], 0
    for at_ms, wanted in sorted(calls):
        now_ms = at_ms
        window.turn(at_ms // 1000)
        if window.wait_ms(value, wanted, at_ms) == 0:
            window.add(at_ms // 1000, wanted)
            let_in.append((at_ms, wanted))
    for at_ms, _ in let_in:
        assert sum(count for when, count in let_in if at_ms - 59_000 < when <= at_ms) <= value
    wait_ms = window.wait_ms(value, cost, now_ms)
    if wait_ms is None:
        assert cost > value
        return
    assert 0 <= wait_ms <= 60_000
    if wait_ms:
        window.turn((now_ms + wait_ms - 1) // 1000)
        assert window.used + cost > value
    window.turn((now_ms + wait_ms) // 1000)
    assert window.used + cost <= value
    window.turn((now_ms + max(wait_ms, window.reset_ms(now_ms))) // 1000)
    assert window.used == 0


async def test_a_minute_slides_so_that_no_burst_at_its_edge_comes_twice() -> None:
    clock = FakeClock()
    limiter, most = make_limiter(clock), per_minute(60)
    clock.now += 30
    assert await admitted(limiter, most, times=20) == 20
    clock.now += 29
    assert await admitted(limiter, most, times=100) == 40
    clock.now += 2
    assert await admitted(limiter, most, times=100) == 0
    clock.now += 29
    assert await admitted(limiter, most, times=100) == 20
    clock.now += 29
    assert await admitted(limiter, most, times=100) == 40


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


async def test_a_request_above_the_whole_limit_is_told_not_to_retry() -> None:
    limiter = make_limiter(FakeClock())
    with pytest.raises(LimitReached) as refused:
        async with limiter.admit(caller(per_minute(3, LimitKind.IMAGES)), images=4, house=None):
            pass
    assert (refused.value.retry_after_seconds, refused.value.retry) == (None, False)


async def test_of_several_limits_the_one_that_never_has_room_is_named() -> None:
    limiter = make_limiter(FakeClock())
    requests, images = per_minute(1), per_minute(3, LimitKind.IMAGES)
    assert await admitted(limiter, requests, images) == 1
    for limits in ((requests, images), (images, requests)):
        with pytest.raises(LimitReached, match="asks for 4") as refused:
            async with limiter.admit(caller(*limits), images=4, house=None):
                pass
        assert refused.value.retry is False


async def test_a_limit_of_zero_admits_no_request() -> None:
    limiter = make_limiter(FakeClock())
    for kind in LimitKind:
        assert await admitted(limiter, per_minute(0, kind)) == 0


async def test_a_request_refused_by_one_limit_uses_up_none_of_the_others() -> None:
    clock = FakeClock()
    limiter = make_limiter(clock)
    wide = per_minute(10)
    narrow = RateLimit("tenant", LimitKind.IMAGES, 1)
    assert await admitted(limiter, wide, narrow, times=8) == 1
    assert await admitted(limiter, wide, times=20) == 9


async def test_a_refusal_in_a_new_minute_knows_the_limits_after_the_one_that_refuses() -> None:
    clock = FakeClock()
    limiter = make_limiter(clock)
    requests, images = per_minute(1), per_minute(5, LimitKind.IMAGES)
    clock.now += 59
    assert await admitted(limiter, requests, images, images=3) == 1
    clock.now += 2
    with pytest.raises(LimitReached) as refused:
        async with limiter.admit(caller(requests, images), images=3, house=None):
            pass
    assert [(one.remaining, one.reset_ms) for one in refused.value.standings] == [
        (0, 58_000),
        (2, 58_000),
    ]


async def test_a_request_that_is_given_back_leaves_no_time_to_wait_for() -> None:
    limiter = make_limiter(FakeClock())
    async with limiter.admit(caller(per_minute(5)), images=1, house=None) as admission:
        admission.withdraw()
    with pytest.raises(LimitReached) as refused:
        async with limiter.admit(caller(per_minute(0)), images=1, house=None):
            pass
    assert [one.reset_ms for one in refused.value.standings] == [0]


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


async def test_a_call_that_was_not_sent_does_not_count_against_the_house_key() -> None:
    limiter = make_limiter(FakeClock(), RateLimit("house", LimitKind.REQUESTS, 1))
    async with limiter.admit(caller(), images=1, house="openai"):
        pass  # refused by its budget, say
    async with limiter.admit(caller(), images=1, house="openai") as admission:
        admission.mark_sent()
    with pytest.raises(LimitReached):
        async with limiter.admit(caller(), images=1, house="openai"):
            pass
    async with limiter.admit(caller(), images=1, house=None):
        pass  # with a key of one's own


async def test_counters_of_idle_callers_are_dropped() -> None:
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


async def test_a_lease_names_a_wait_only_when_all_are_taken() -> None:
    limiter = make_limiter(FakeClock())
    both = caller(per_minute(2), RateLimit("tenant", LimitKind.CONCURRENT, 2))
    waits: list[list[int]] = []

    def note(standings: Sequence[Standing]) -> None:
        waits.append([one.next_ms for one in standings if one.limit.kind is LimitKind.CONCURRENT])

    async with AsyncExitStack() as running:
        for _ in range(2):
            admission = await running.enter_async_context(limiter.admit(both, images=1, house=None))
            note(admission.standings)
        with pytest.raises(LimitReached) as full:
            async with limiter.admit(both, images=1, house=None):
                pass
    with pytest.raises(LimitReached) as by_the_minute:
        async with limiter.admit(both, images=1, house=None):
            pass
    for refused in (full, by_the_minute):
        note(refused.value.standings)
    assert waits == [[0], [0], [LEASE_WAIT_MS], [0]]
