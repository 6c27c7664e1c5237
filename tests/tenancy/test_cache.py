"""The cache loads a value once for concurrent lookups and never returns one older than a change."""

import asyncio
import time
from collections.abc import Callable

import pytest

from gateway.db.cache import Cache
from gateway.db.engine import DatabaseUnavailable
from tests.limits_helpers import FakeClock

WHO_ASKS = 50


class Rows:
    """A fake database row; each load waits until it is released."""

    def __init__(self, value: str) -> None:
        self.value = value
        self.loads = 0
        self.answers = asyncio.Event()

    async def load(self) -> tuple[str, str]:
        self.loads += 1
        found = self.value
        await self.answers.wait()
        return found, "tag"


def make_cache(
    load_seconds: float = 30.0, clock: Callable[[], float] = time.monotonic
) -> Cache[str, str]:
    return Cache(ttl_seconds=30, max_entries=10, load_seconds=load_seconds, clock=clock)


async def asked(count: int, cache: Cache[str, str], rows: Rows) -> list[asyncio.Task[str | None]]:
    """Start `count` concurrent lookups; all of them wait."""
    tasks = [asyncio.create_task(cache.get("key", rows.load)) for _ in range(count)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_concurrent_lookups_cost_one_load() -> None:
    cache, rows = make_cache(), Rows("old")
    tasks = await asked(WHO_ASKS, cache, rows)
    rows.answers.set()
    assert await asyncio.gather(*tasks) == ["old"] * WHO_ASKS
    assert await cache.get("key", rows.load) == "old"
    assert rows.loads == 1


async def test_a_lookup_after_a_change_does_not_get_a_load_begun_before_it() -> None:
    cache, rows = make_cache(), Rows("old")
    early = await asked(2, cache, rows)
    rows.value = "new"
    cache.clear("tag")
    late = await asked(2, cache, rows)
    rows.answers.set()
    assert await asyncio.gather(*early) == ["old", "old"]
    assert await asyncio.gather(*late) == ["new", "new"]
    assert await cache.get("key", rows.load) == "new"
    assert rows.loads == 2


async def test_a_change_without_a_notification_is_noticed_after_the_time_to_live() -> None:
    clock = FakeClock()
    cache, rows = make_cache(clock=clock), Rows("old")
    rows.answers.set()
    assert await cache.get("key", rows.load) == "old"
    rows.value = "new"
    clock.now += 29.9
    assert await cache.get("key", rows.load) == "old"
    clock.now += 0.2
    assert await cache.get("key", rows.load) == "new"
    assert rows.loads == 2


async def test_a_cancelled_lookup_does_not_cancel_the_load() -> None:
    cache, rows = make_cache(), Rows("old")
    leaving, staying = await asked(2, cache, rows)
    leaving.cancel()
    await asyncio.wait([leaving])
    rows.answers.set()
    assert await staying == "old"
    assert rows.loads == 1


async def test_a_failed_load_fails_every_waiting_lookup_and_is_retried() -> None:
    cache, rows = make_cache(load_seconds=0.01), Rows("old")
    for task in await asked(3, cache, rows):
        with pytest.raises(DatabaseUnavailable):
            await task
    rows.answers.set()
    assert await cache.get("key", rows.load) == "old"
    assert rows.loads == 2
