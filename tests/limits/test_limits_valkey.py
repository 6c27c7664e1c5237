"""Limits that several gateways share in a real Valkey, and their behaviour when it goes away."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr

from gateway.config import Settings
from gateway.domain import LimitKind, RateLimit
from gateway.limits.enforcement import Limiter, LimitReached, open_limiter
from tests.harness import (
    Served,
    free_port,
    gateway_process,
    process_environment,
    secret_of,
    served_gateway,
)
from tests.limits_helpers import (
    BODY,
    PATH,
    TENANT_ID,
    Valkey,
    burst,
    caller,
    limit,
    running_valkey,
    with_redis,
)
from tests.stub_openai import Fault, Stub

WAIT_SECONDS = 30
SHORT_LEASE = 1.5
PROCESSES = "{image-gateway}:limits:processes"
LEASES = f"{{image-gateway}}:limits:concurrent:tenant:{TENANT_ID}:live"


@pytest.fixture
def server() -> Iterator[Valkey]:
    """A Valkey for this test alone."""
    with running_valkey() as running:
        yield running


@pytest.fixture
async def pair(settings: Settings, server: Valkey) -> AsyncIterator[tuple[Served, Served]]:
    """Two gateways on one database and one Valkey; the invariants are checked at the end."""
    shared = with_redis(settings, server, limit_lease_seconds=SHORT_LEASE)
    async with served_gateway(shared) as one, served_gateway(shared) as two:
        yield one, two
        await one.check_invariants()


@asynccontextmanager
async def clients(*gateways: Served) -> AsyncIterator[list[httpx2.AsyncClient]]:
    """One client of each gateway with one key, and no more requests than are served at once."""
    async with AsyncExitStack() as stack:
        key = await gateways[0].key()
        few = httpx2.Limits(max_connections=40)
        yield [
            await stack.enter_async_context(gateway.http(key, limits=few)) for gateway in gateways
        ]


@asynccontextmanager
async def limiters(
    settings: Settings, server: Valkey, count: int = 2, **changes: Any
) -> AsyncIterator[list[Limiter]]:
    """Limiters as of several processes, once all of them know of each other."""
    changed = with_redis(settings, server, **{"limit_lease_seconds": SHORT_LEASE, **changes})
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(open_limiter(changed, process=UUID(int=number)))
            for number in range(count)
        ]
        await until_shared(*opened)
        yield opened


async def until_shared(*opened: Limiter) -> None:
    """Return when all limiters count in Valkey and know of each other."""
    await until(lambda: {limiter.processes for limiter in opened} == {len(opened)})


async def until(is_so: Callable[[], bool]) -> None:
    """Return when the condition holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not is_so():  # noqa: ASYNC110 - Valkey sends no event
            await asyncio.sleep(0)


def of_tenant(value: int, kind: LimitKind = LimitKind.REQUESTS) -> RateLimit:
    return RateLimit("tenant", kind, value)


async def is_let_in(limiter: Limiter, *limits: RateLimit, images: int = 1) -> bool:
    """Tell if one request is admitted; it leaves at once."""
    try:
        async with limiter.admit(caller(*limits), images=images, house=None):
            return True
    except LimitReached:
        return False


async def let_in(limiter: Limiter, *limits: RateLimit, times: int) -> int:
    """The number of `times` concurrent requests that are admitted; each leaves at once."""
    came = await asyncio.gather(*(is_let_in(limiter, *limits) for _ in range(times)))
    return came.count(True)


# Shared


async def test_two_gateways_share_a_limit(pair: tuple[Served, Served], stub: Stub) -> None:
    await limit(pair[0], "requests", 40)
    pair[1].gateway.clear_caches(None)
    async with clients(*pair) as both:
        came = await burst(both, 120)
    assert came[200] + came[429] == 120
    assert 40 <= came[200] <= 41
    assert len(stub.bill) == came[200]


async def test_a_generation_on_one_gateway_takes_its_place_on_the_other(
    pair: tuple[Served, Served], stub: Stub
) -> None:
    await limit(pair[0], "concurrent", 1)
    pair[1].gateway.clear_caches(None)
    stub.faults.add(Fault(hold=True))
    async with clients(*pair) as (one, two):
        running = asyncio.create_task(one.post(PATH, json=BODY))
        await stub.until_held(1)
        assert (await two.post(PATH, json=BODY)).status_code == 429
        stub.release()
        assert (await running).status_code == 200
        async with asyncio.timeout(WAIT_SECONDS):  # the answer comes before the place is given back
            while (await two.post(PATH, json=BODY)).status_code != 200:
                pass


async def test_limits_are_exact_across_processes_however_many_come_at_once(
    settings: Settings, server: Valkey
) -> None:
    async with limiters(settings, server, 4) as four:
        came = await asyncio.gather(
            *(let_in(limiter, of_tenant(100), times=100) for limiter in four)
        )
    assert 100 <= sum(came) <= 102  # a minute may begin anew in between


async def test_all_limits_of_a_request_take_one_round_trip_and_requests_share_them(
    settings: Settings, server: Valkey
) -> None:
    limits = [
        RateLimit(owner, kind, 1000) for owner in ("key", "user", "tenant") for kind in LimitKind
    ]
    async with limiters(settings, server, 1, limit_lease_seconds=600) as (limiter,):
        before = server.calls("evalsha")
        who = caller(*limits, api_key_id=TENANT_ID, user_id=TENANT_ID)
        async with limiter.admit(who, images=1, house="openai"):
            assert server.calls("evalsha") == before + 1
        assert await let_in(limiter, *limits, times=60) == 60
        assert server.calls("evalsha") < before + 20


async def test_an_answer_that_a_busy_process_reads_late_counts(
    settings: Settings, server: Valkey
) -> None:
    timeout_ms = 1000
    changes = {"limit_lease_seconds": 600, "redis_timeout_ms": timeout_ms}
    async with limiters(settings, server, 1, **changes) as (limiter,):
        before = server.calls("evalsha")
        server.pause()
        end = time.monotonic() + timeout_ms / 1000
        asking = asyncio.create_task(is_let_in(limiter, of_tenant(10)))
        for _ in range(20):  # until the question is in the socket
            await asyncio.sleep(0)
        server.resume()
        # The event loop is blocked from here until the answer has come and the timeout has passed.
        while server.calls("evalsha") == before or time.monotonic() < end + 0.1:
            assert time.monotonic() < end + WAIT_SECONDS, "the question was not sent"
        assert await asking
        assert limiter.trouble is None
        assert server.calls("evalsha") == before + 1


async def test_a_refusal_uses_up_nothing_in_valkey_either(
    settings: Settings, server: Valkey
) -> None:
    images = of_tenant(2, LimitKind.IMAGES)
    async with limiters(settings, server, 1) as (limiter,):
        assert await let_in(limiter, of_tenant(10), images, times=6) == 2
        assert await let_in(limiter, of_tenant(10), times=20) in {8, 9}


async def test_a_limit_is_given_back_in_valkey_for_a_call_that_was_not_sent(
    settings: Settings, server: Valkey
) -> None:
    async with limiters(settings, server, 2, house_requests_per_minute=1) as (one, two):
        async with one.admit(caller(), images=1, house="openai"):
            pass
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                try:
                    async with two.admit(caller(), images=1, house="openai") as admission:
                        admission.mark_sent()
                        break
                except LimitReached:
                    continue
        with pytest.raises(LimitReached):
            async with one.admit(caller(), images=1, house="openai"):
                pass


async def test_a_long_generation_keeps_its_place(settings: Settings, server: Valkey) -> None:
    one_place = of_tenant(1, LimitKind.CONCURRENT)
    async with limiters(settings, server, 2, limit_lease_seconds=0.5) as (one, two):
        async with one.admit(caller(one_place), images=1, house=None):
            [(_, first)] = server.client.zrange(LEASES, 0, -1, withscores=True)
            async with asyncio.timeout(WAIT_SECONDS):
                while server.client.zscore(LEASES, server.client.zrange(LEASES, 0, 0)[0]) < (
                    first + 600  # milliseconds: more than a lease later
                ):
                    assert not await is_let_in(two, one_place)
        async with asyncio.timeout(WAIT_SECONDS):
            while not await is_let_in(two, one_place):
                pass


# Away


async def test_a_killed_worker_gives_its_places_back(
    settings: Settings, server: Valkey, stub: Stub, tmp_path: Path
) -> None:
    shared = with_redis(settings, server, limit_lease_seconds=3.0)
    environment = process_environment(shared) | {
        "GATEWAY_REDIS_URL": server.url,
        "GATEWAY_LIMIT_LEASE_SECONDS": "3.0",
    }
    stub.faults.add(Fault(hold=True))
    async with served_gateway(shared) as served, clients(served) as (other,):
        await limit(served, "concurrent", 1)
        key = secret_of(await served.key())
        with gateway_process(environment, tmp_path / "log") as worker:
            await worker.until_ready()
            async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as http:
                call = asyncio.create_task(http.post(f"{worker.base_url}{PATH}", json=BODY))
                await stub.until_held(1)
                assert (await other.post(PATH, json=BODY)).status_code == 429
                worker.kill()
                with pytest.raises(httpx2.TransportError):
                    await call
            assert (await other.post(PATH, json=BODY)).status_code == 429
            async with asyncio.timeout(WAIT_SECONDS):
                while (await other.post(PATH, json=BODY)).status_code != 200:
                    pass


@pytest.mark.parametrize("mishap", ["kill", "pause", "flush"])
async def test_a_failing_valkey_fails_no_request_and_overspends_no_budget(
    pair: tuple[Served, Served], server: Valkey, stub: Stub, mishap: str
) -> None:
    await limit(pair[0], "requests", 100)
    await limit(pair[0], "concurrent", 60)
    await pair[0].budget("0.5", window="total")
    pair[1].gateway.clear_caches(None)
    async with clients(*pair) as both:
        running = asyncio.create_task(burst(both, 400))
        await until(lambda: len(stub.bill) >= 20)
        getattr(server, mishap)()
        came = await running
        server.resume()
    assert set(came) <= {200, 402, 429}
    assert len(stub.bill) == came[200]
    # Each process remembers what it let in itself, and takes its share of the limit.
    assert came[200] <= (200 if mishap == "flush" else 150)
    assert await pair[0].ledger_total() <= 500_000_000


async def test_a_valkey_that_does_not_answer_is_waited_for_once(
    settings: Settings, server: Valkey
) -> None:
    took = []
    async with limiters(settings, server, 1, redis_timeout_ms=50) as (limiter,):
        before = unshared()
        server.pause()
        for _ in range(100):
            started = time.perf_counter()
            assert await is_let_in(limiter, of_tenant(1000))
            took.append(time.perf_counter() - started)
        server.resume()
        assert limiter.processes is None
        assert unshared() == before + 100
    assert sum(seconds > 0.03 for seconds in took) <= 2, took  # one of them may be the machine's
    assert max(took) < 1


async def test_while_valkey_is_away_each_process_takes_its_share(
    settings: Settings, server: Valkey
) -> None:
    async with limiters(settings, server, 2) as both:
        assert await let_in(both[0], of_tenant(20), times=7) == 7
        server.kill()
        # It has used seven of its ten; the other process has used none.
        assert await let_in(both[0], of_tenant(20), times=20) == 3
        assert await let_in(both[1], of_tenant(20), times=20) == 10
        assert await let_in(both[0], of_tenant(1, LimitKind.IMAGES), times=5) == 1
        # A request for more than the share, but not than the limit, is not shut out.
        assert await is_let_in(both[1], of_tenant(8, LimitKind.IMAGES), images=6)
        assert not await is_let_in(both[1], of_tenant(8, LimitKind.IMAGES), images=6)


async def test_valkey_is_used_again_when_it_is_back_with_the_places_that_are_taken(
    settings: Settings, server: Valkey
) -> None:
    two_places = of_tenant(2, LimitKind.CONCURRENT)
    async with limiters(settings, server, 2) as both, AsyncExitStack() as running:
        server.kill()
        for limiter in both:
            await running.enter_async_context(
                limiter.admit(caller(two_places), images=1, house=None)
            )
        server.start_again()
        await until_shared(*both)
        await until(lambda: server.client.zcard(LEASES) == 2)
        assert not await is_let_in(both[0], two_places)
        await running.aclose()
        async with asyncio.timeout(WAIT_SECONDS):
            while not await is_let_in(both[1], two_places):
                pass


async def test_a_valkey_that_was_emptied_hears_again_of_the_places_that_are_taken(
    settings: Settings, server: Valkey
) -> None:
    one_place = of_tenant(1, LimitKind.CONCURRENT)
    async with (
        limiters(settings, server, 1, limit_lease_seconds=600) as (limiter,),
        limiter.admit(caller(one_place), images=1, house=None),
    ):
        server.flush()
        await is_let_in(limiter, of_tenant(5))  # any request tells that it was forgotten
        await until(lambda: server.client.zcard(LEASES) == 1)
        assert not await is_let_in(limiter, one_place)


async def test_requests_alone_renew_no_places_while_valkey_knows_the_gateway(
    settings: Settings, server: Valkey
) -> None:
    async with limiters(settings, server, 1, limit_lease_seconds=600) as (limiter,):
        heartbeats = server.calls("eval")
        assert await let_in(limiter, of_tenant(5), times=5) == 5
        for _ in range(5):
            assert not await is_let_in(limiter, of_tenant(5))
        assert server.calls("eval") == heartbeats


async def test_a_valkey_that_failed_is_used_again_long_before_the_next_heartbeat(
    settings: Settings, server: Valkey
) -> None:
    async with limiters(settings, server, 1, limit_lease_seconds=600) as (limiter,):
        server.kill()
        assert await is_let_in(limiter, of_tenant(5))
        assert limiter.processes is None
        server.start_again()
        await until_shared(limiter)


async def test_a_gateway_that_ends_no_longer_counts_as_one_that_shares(
    settings: Settings, server: Valkey
) -> None:
    async with limiters(settings, server, 1, limit_lease_seconds=600):
        assert server.client.zcard(PROCESSES) == 1
    assert server.client.zcard(PROCESSES) == 0


async def test_a_gateway_ends_in_time_while_its_valkey_does_not_answer(
    settings: Settings, server: Valkey
) -> None:
    async with asyncio.timeout(WAIT_SECONDS), limiters(settings, server, 1) as (limiter,):
        assert await is_let_in(limiter, of_tenant(5))
        server.pause()


async def test_a_gateway_starts_without_its_valkey_and_serves(
    settings: Settings, stub: Stub
) -> None:
    url = SecretStr(f"redis://:a-secret@127.0.0.1:{free_port()}/0")
    async with served_gateway(settings.model_copy(update={"redis_url": url})) as served:
        await limit(served, "requests", 3)
        async with served.http(await served.key()) as http:
            assert await burst([http], 6) == {200: 3, 429: 3}
    assert len(stub.bill) == 3


async def test_a_wrong_password_counts_as_valkey_away_and_is_not_logged(
    settings: Settings, server: Valkey, capsys: pytest.CaptureFixture[str]
) -> None:
    server.client.config_set("requirepass", "right-password")
    url = SecretStr(server.url.replace("127.0.0.1", ":wrong-password@127.0.0.1"))
    changed = settings.model_copy(update={"redis_url": url})
    async with open_limiter(changed, process=TENANT_ID) as limiter:
        assert limiter.processes is None
        assert await let_in(limiter, of_tenant(3), times=5) == 3
    said = capsys.readouterr()
    assert "wrong-password" not in said.out + said.err


def unshared() -> float:
    """The metric of requests that only this process counted."""
    return REGISTRY.get_sample_value("gateway_limits_unshared_total") or 0.0
