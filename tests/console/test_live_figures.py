"""Live figures: shared by those who watch, bounded in number and time."""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import date, timedelta

import httpx2
import pytest

from gateway.console.overview import summed_up
from gateway.console.pages.overview import EVENTS, MAX_WATCHERS, WATCHABLE_SECONDS
from gateway.console.periods import parse_days
from gateway.console.shared import Shared
from tests.console_browser import session_cookies
from tests.harness import Served, error_of

TODAY = date(2026, 3, 31)


async def test_many_who_ask_at_once_share_one_computation() -> None:
    asked = 0
    now = [100.0]
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def compute() -> int:
        nonlocal asked
        asked += 1
        begun.set()
        await may_end.wait()
        return asked

    shared = Shared(compute, seconds=10, clock=lambda: now[0])
    waiting = [asyncio.create_task(shared.get()) for _ in range(20)]
    await begun.wait()
    may_end.set()
    assert await asyncio.gather(*waiting) == [1] * 20
    now[0] = 109.9
    assert await shared.get() == 1
    now[0] = 110.0
    assert await shared.get() == 2


async def test_an_error_is_not_kept() -> None:
    answers: list[int | ValueError] = [ValueError("away"), 7]

    async def compute() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    shared = Shared(compute, seconds=10)
    with pytest.raises(ValueError, match="away"):
        await shared.get()
    assert await shared.get() == 7


def address(*, seconds_ago: float = 0) -> str:
    """The address of the events, as a page of that age has it."""
    return f"{EVENTS}?opened={int(time.time() - seconds_ago)}"


async def test_streams_are_bounded_and_a_closed_one_makes_room(served: Served) -> None:
    cookies = {str(one["name"]): str(one["value"]) for one in await session_cookies(served)}
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            served.http(cookies=cookies, limits=httpx2.Limits(max_connections=None))
        )
        streams = [http.stream("GET", address()) for _ in range(MAX_WATCHERS)]
        opened = [await stream.__aenter__() for stream in streams]
        assert {answer.status_code for answer in opened} == {200}
        refused = await http.get(address())
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "60"
        assert "40 open live views" in error_of(refused)["message"]
        lines = opened[0].aiter_lines()
        found = [await anext(lines) for _ in range(3)]
        assert found[0] == "retry: 5000"
        assert found[2].startswith("data: <div")
        await streams[0].__aexit__(None, None, None)
        # The server notices when it next writes, or when the connection closes.
        async with asyncio.timeout(30):
            while True:
                async with http.stream("GET", address()) as again:
                    if again.status_code == 200:
                        break
        for stream in streams[1:]:
            await stream.__aexit__(None, None, None)


async def test_a_stream_needs_a_session_and_ends_with_the_process_or_an_old_page(
    served: Served,
) -> None:
    async with served.http() as anyone:
        refused = await anyone.get(EVENTS, headers={"HX-Request": "true"})
    assert refused.status_code == 401
    cookies = {str(one["name"]): str(one["value"]) for one in await session_cookies(served)}
    async with served.http(cookies=cookies) as http:
        old = await http.get(address(seconds_ago=WATCHABLE_SECONDS + 60))
        assert old.text.startswith("event: over")
        assert (await http.get(f"{EVENTS}?opened={10**12}")).text == old.text
    async with served.http(cookies=cookies) as http, http.stream("GET", address()) as stream:
        served.gateway.leaving.set()
        text = "".join([part async for part in stream.aiter_text()])
    assert text.startswith("retry: ")


def test_the_forecast_is_what_is_spent_and_the_pace_of_seven_days() -> None:
    days = {TODAY.replace(day=15) - timedelta(days=at): 70 for at in range(15)}
    figures = summed_up({"a": days, "b": {}}, TODAY.replace(day=15), TODAY.replace(day=15))
    assert (figures.month, figures.today, figures.yesterday) == (15 * 70, 70, 70)
    assert figures.forecast == 31 * 70
    quiet = summed_up({"a": days}, TODAY.replace(day=16), TODAY.replace(day=16))
    assert quiet.forecast == 31 * 70
    assert sum(figures.by_day) == 15 * 70


def test_days_of_a_longer_month_are_compared_with_all_of_a_shorter_one() -> None:
    spent = {date(2026, 2, 28): 5, date(2026, 2, 1): 7, TODAY: 1}
    assert summed_up({"a": spent}, TODAY, TODAY).before == 12


@pytest.mark.parametrize(
    ("choice", "first", "last", "before"),
    [
        ("today", TODAY, TODAY, (date(2026, 3, 30), date(2026, 3, 30))),
        ("7d", date(2026, 3, 25), TODAY, (date(2026, 3, 18), date(2026, 3, 24))),
        ("month", date(2026, 3, 1), TODAY, (date(2026, 2, 1), date(2026, 2, 28))),
        ("last-month", date(2026, 2, 1), date(2026, 2, 28), (date(2026, 1, 1), date(2026, 1, 31))),
        ("nonsense", date(2026, 3, 2), TODAY, (date(2026, 1, 31), date(2026, 3, 1))),
    ],
)
def test_a_period_is_compared_with_the_one_before(
    choice: str, first: date, last: date, before: tuple[date, date]
) -> None:
    days = parse_days(choice, "", "", TODAY, "Europe/Madrid")
    assert (days.first, days.last) == (first, last)
    assert (days.before.first, days.before.last) == before
    # The clocks went forward on 29 March: the period is an hour shorter.
    whole = parse_days("7d", "", "", TODAY, "Europe/Madrid").period
    assert whole.end.timestamp() - whole.start.timestamp() == 7 * 86_400 - 3600
    assert replace(days, zone="UTC").number == days.number
    # A month of the chart leads to those of its days that the report counts.
    assert days.clamp("2000-01-01", "2100-01-01") == (first.isoformat(), last.isoformat())
