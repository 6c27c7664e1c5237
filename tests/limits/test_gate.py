"""The gate: bounded slots, a bounded wait, and turns between tenants."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Unavailable
from gateway.load.gate import Gate, GateLimits, GateSlot
from tests.limits_helpers import FakeClock

LIMITS = GateLimits(most=2, most_of_one=2, max_waiting=100, wait_seconds=30)
SHARED = GateLimits(most=4, most_of_one=2, max_waiting=6, wait_seconds=30)


async def settle() -> None:
    """Let every task run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_request_without_a_place_waits_until_one_is_free() -> None:
    gate = Gate("test", LIMITS)
    first, second = await gate.enter("a"), await gate.enter("a")
    third = asyncio.create_task(gate.enter("a"))
    await settle()
    assert (gate.inside, gate.waiting, third.done()) == (2, 1, False)
    first.leave()
    first.leave()  # leaving twice frees no slot of another
    (await third).leave()
    second.leave()
    assert (gate.inside, gate.waiting) == (0, 0)


async def test_tenants_take_turns_even_if_many_requests_of_one_wait() -> None:
    gate = Gate("test", GateLimits(1, 1, 100, 30))
    served: list[str] = []

    async def visit(owner: str) -> None:
        async with gate.slot(owner):
            served.append(owner)

    slot = await gate.enter("a")
    visits = [asyncio.create_task(visit(owner)) for owner in ("a", "a", "a", "b", "c", "b")]
    await settle()
    slot.leave()
    await asyncio.gather(*visits)
    assert served == ["a", "b", "c", "a", "b", "a"]


async def test_one_who_leaves_makes_room_for_one_of_the_same_tenant() -> None:
    gate = Gate("test", GateLimits(most=4, most_of_one=3, max_waiting=6, wait_seconds=30))
    inside = [await gate.enter("a") for _ in range(3)]
    inside[0].leave()
    inside[0] = await gate.enter("a")
    waiting = asyncio.create_task(gate.enter("a"))
    await settle()
    assert (gate.inside, waiting.done()) == (3, False)
    for slot in inside:
        slot.leave()
    (await waiting).leave()


async def test_one_tenant_never_takes_more_than_its_share_of_places_or_of_the_wait() -> None:
    gate = Gate("test", SHARED)
    inside = [await gate.enter("a") for _ in range(2)]
    waiting = [asyncio.create_task(gate.enter("a")) for _ in range(3)]
    await settle()
    with pytest.raises(Unavailable):
        await gate.enter("a")
    others = [await gate.enter("b") for _ in range(2)]
    assert (gate.inside, gate.waiting) == (4, 3)
    # Its own slots go to its own: the share of the others stays theirs.
    inside[0].leave()
    await settle()
    assert [task.done() for task in waiting] == [True, False, False]
    for slot in (*others, inside[1]):
        slot.leave()
    for task in waiting:
        (await task).leave()
    assert (gate.inside, gate.waiting) == (0, 0)


async def test_a_request_that_would_wait_too_long_is_refused_at_once() -> None:
    clock = FakeClock()
    gate = Gate("test", GateLimits(1, 1, 100, wait_seconds=1), clock=clock)
    for _ in range(100):  # each stays for 0.4 seconds
        slot = await gate.enter("a")
        clock.now += 0.4
        slot.leave()
    slot = await gate.enter("a")
    waiting = [asyncio.create_task(gate.enter("a")) for _ in range(2)]
    await settle()
    with pytest.raises(Unavailable) as refused:
        await gate.enter("a")
    assert (refused.value.code, refused.value.retry_after_seconds) == ("overloaded", 1)
    with pytest.raises(Unavailable):
        gate.check("a")
    gate.check("b")  # another tenant's turn comes sooner than the third of this one's
    slot.leave()
    for task in waiting:
        (await task).leave()


async def test_a_wait_ends_at_its_limit_even_if_no_place_is_freed() -> None:
    gate = Gate("test", GateLimits(1, 1, 100, wait_seconds=0.01))
    slot = await gate.enter("a")
    with pytest.raises(Unavailable):
        await gate.enter("b")
    assert gate.waiting == 0
    slot.leave()
    (await gate.enter("b")).leave()


async def test_a_request_that_stops_waiting_takes_no_place() -> None:
    gate = Gate("test", GateLimits(1, 1, 100, 30))
    slot = await gate.enter("a")
    tasks = [asyncio.create_task(gate.enter("a")) for _ in range(3)]
    await settle()
    tasks[0].cancel()  # while it waits
    slot.leave()  # the next one is given the slot …
    tasks[1].cancel()  # … and leaves in the same moment
    (await tasks[2]).leave()
    ended = await asyncio.gather(*tasks[:2], return_exceptions=True)
    assert [type(one) for one in ended] == [asyncio.CancelledError] * 2
    assert (gate.inside, gate.waiting) == (0, 0)


async def test_closing_releases_waiting_requests_and_admits_no_new_wait() -> None:
    gate = Gate("test", GateLimits(1, 1, 100, 30))
    slot = await gate.enter("a")
    waiting = asyncio.create_task(gate.enter("b"))
    await settle()
    gate.end_waiting()
    for refused in (waiting, gate.enter("c")):
        with pytest.raises(Unavailable):
            await refused
    slot.leave()
    (await gate.enter("c")).leave()
    gate.close()
    with pytest.raises(Unavailable):
        await gate.enter("c")


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "leave", "cancel"]), st.sampled_from("abc"), st.integers(0))
)


@settings(deadline=None)
@given(STEPS)
def test_no_sequence_of_requests_exceeds_or_loses_a_place(
    steps: list[tuple[str, str, int]],
) -> None:
    asyncio.run(_come_and_go(steps))


async def _come_and_go(steps: list[tuple[str, str, int]]) -> None:
    gate = Gate("test", SHARED)
    tasks: dict[asyncio.Task[GateSlot], str] = {}

    def inside() -> list[asyncio.Task[GateSlot]]:
        ended = [task for task in tasks if task.done() and not task.cancelled()]
        return [task for task in ended if task.exception() is None]

    for step, owner, at in steps:
        if step == "enter":
            tasks[asyncio.create_task(gate.enter(owner))] = owner
        elif step == "leave" and inside():
            task = inside()[at % len(inside())]
            task.result().leave()
            del tasks[task]
        elif step == "cancel" and tasks:
            task = list(tasks)[at % len(tasks)]
            if not task.done():
                task.cancel()
        await settle()
        shares = Counter(tasks[task] for task in inside())
        waiting = Counter(tasks[task] for task in tasks if not task.done())
        assert (gate.inside, gate.waiting) == (shares.total(), waiting.total())
        assert gate.inside <= SHARED.most
        assert all(count <= SHARED.most_of_one for count in shares.values())
        if gate.inside < SHARED.most:  # no request waits beside a slot that it could have
            assert all(shares[owner] == SHARED.most_of_one for owner in waiting)
    while inside():
        for task in inside():
            task.result().leave()
            del tasks[task]
        await settle()
    assert (gate.inside, gate.waiting) == (0, 0)
