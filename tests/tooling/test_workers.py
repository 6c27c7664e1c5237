"""Several workers behind one port share limits, replace a killed worker and lose no call."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx2
import psutil  # type: ignore[import-untyped]  # comes with the embedded Postgres
import pytest

from gateway.config import Settings
from gateway.tenancy import api_keys
from tests.harness import (
    GatewayProcess,
    Served,
    gateway_process,
    process_environment,
    served_gateway,
)
from tests.limits_helpers import BODY, PATH, burst, limit, running_valkey, with_redis
from tests.money_helpers import client_of, count_states, eventually, statuses
from tests.stub_openai import Fault, Stub

# Each starts up to seven processes, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(300)
MANY = ("--workers", "2")
CALLS = 12
STAYING = 8
STOP_SECONDS = 60


@asynccontextmanager
async def clients_of(
    served: Served, process: GatewayProcess, count: int
) -> AsyncIterator[list[httpx2.AsyncClient]]:
    """Clients with one connection each, enough for every worker to get some."""
    key = await served.key()
    clients = [client_of(process.base_url, key) for _ in range(count)]
    yield clients
    await asyncio.gather(*(client.aclose() for client in clients))


async def test_workers_that_are_told_to_stop_finish_every_paid_call(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    stub.faults.add(Fault(hold=True, times=None))
    environment = process_environment(settings) | {"GATEWAY_DRAIN_SECONDS": "30"}
    with gateway_process(environment, tmp_path / "log", *MANY, from_nothing=True) as running:
        await running.until_ready(tries=2400)
        async with clients_of(served, running, CALLS) as clients:
            calls = [asyncio.create_task(client.post(PATH, json=BODY)) for client in clients]
            await stub.until_held(CALLS)
            # A client that leaves has paid all the same: its worker must wait for the call too.
            for call in calls[STAYING:]:
                call.cancel()
            await asyncio.wait(calls[STAYING:])
            running.process.send_signal(signal.SIGTERM)
            await until_refused(running)
            stub.release()
            answers = await asyncio.gather(*calls[:STAYING])
        assert await asyncio.to_thread(running.process.wait, STOP_SECONDS) == 0
    assert statuses(answers) == {200: STAYING}
    assert await count_states(served) == {"posted": CALLS}
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in stub.bill)


async def test_workers_end_with_a_killed_parent_and_finish_every_paid_call(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    stub.faults.add(Fault(hold=True, times=None))
    environment = process_environment(settings) | {
        "GATEWAY_DRAIN_SECONDS": "30",
        "GATEWAY_SHUTDOWN_DELAY_SECONDS": "300",
    }
    with gateway_process(environment, tmp_path / "log", *MANY, from_nothing=True) as running:
        await running.until_ready(tries=2400)
        workers = [psutil.Process(pid) for pid in workers_of(running)]
        assert len(workers) == 2
        async with clients_of(served, running, CALLS) as clients:
            calls = [asyncio.create_task(client.post(PATH, json=BODY)) for client in clients]
            await stub.until_held(CALLS)
            await asyncio.to_thread(running.kill)
            await until_refused(running)
            stub.release()
            answers = await asyncio.gather(*calls)
        _, left = await asyncio.to_thread(psutil.wait_procs, workers, STOP_SECONDS)
    assert left == []
    assert statuses(answers) == {200: CALLS}
    assert await count_states(served) == {"posted": CALLS}


@pytest.mark.full
async def test_a_worker_that_is_killed_is_replaced(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    with gateway_process(
        process_environment(settings), tmp_path / "log", *MANY, from_nothing=True
    ) as running:
        await running.until_ready(tries=2400)
        before = workers_of(running)
        os.kill(min(before), signal.SIGKILL)

        async def replaced() -> bool:
            now = await asyncio.to_thread(workers_of, running)
            return len(now) == len(before) and min(before) not in now

        await eventually(replaced)
        await running.until_ready(tries=2400)
        async with clients_of(served, running, CALLS) as clients:
            answers = await asyncio.gather(*(client.post(PATH, json=BODY) for client in clients))
    assert statuses(answers) == {200: CALLS}
    assert len(stub.bill) == CALLS


async def test_workers_are_replaced_at_sighup_without_a_failed_request(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    with gateway_process(
        process_environment(settings), tmp_path / "log", *MANY, from_nothing=True
    ) as running:
        await running.until_ready(tries=2400)
        before = set(workers_of(running))
        key = await served.key()
        answers: list[httpx2.Response] = []
        are_replaced = asyncio.Event()

        async def call(per_connection: int) -> None:
            while not are_replaced.is_set():
                async with client_of(running.base_url, key) as client:
                    calls = [await client.post(PATH, json=BODY) for _ in range(per_connection)]
                answers.extend(calls)

        async def replaced() -> bool:
            return before.isdisjoint(await asyncio.to_thread(workers_of, running))

        async with asyncio.TaskGroup() as callers:
            for number in range(STAYING):
                callers.create_task(call(per_connection=1 if number % 2 else 20))
            running.process.send_signal(signal.SIGHUP)
            await eventually(replaced, seconds=2 * STOP_SECONDS)
            are_replaced.set()
    assert statuses(answers) == {200: len(answers)}
    assert len(stub.bill) == len(answers)


async def test_workers_that_cannot_start_end_the_gateway_with_a_failure(
    settings: Settings, tmp_path: Path
) -> None:
    nonsense = {"GATEWAY_REDIS_URL": "redis://127.0.0.1:6379/0?nonsense=1"}
    with gateway_process(
        process_environment(settings) | nonsense, tmp_path / "log", *MANY, from_nothing=True
    ) as running:
        assert await asyncio.to_thread(running.process.wait, 2 * STOP_SECONDS) == 1


@pytest.mark.full
async def test_a_revoked_key_ends_on_every_worker(
    served: Served, settings: Settings, tmp_path: Path
) -> None:
    with gateway_process(
        process_environment(settings), tmp_path / "log", *MANY, from_nothing=True
    ) as running:
        await running.until_ready(tries=2400)
        key = await served.key()
        clients = [client_of(running.base_url, key) for _ in range(CALLS)]

        async def answers() -> dict[int, int]:
            return statuses(await asyncio.gather(*(c.get("/v1/models") for c in clients)))

        async def refused() -> bool:
            return await answers() == {401: CALLS}

        assert await answers() == {200: CALLS}
        async with served.gateway.database.operator() as session:
            await api_keys.revoke(session, key.id)
        # Announced, it is heard at once; what is only cached would live for thirty seconds.
        await eventually(refused, seconds=15)
        await asyncio.gather(*(client.aclose() for client in clients))


async def test_workers_of_two_gateways_share_a_limit(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    with running_valkey() as valkey:
        environment = process_environment(settings) | {
            "GATEWAY_REDIS_URL": valkey.url,
            # On a busy machine an answer may take longer than the usual 50, and each then counts
            # for itself.
            "GATEWAY_REDIS_TIMEOUT_MS": "1000",
        }
        async with served_gateway(with_redis(settings, valkey)) as served:
            await limit(served, "requests", 40)
            with (
                gateway_process(environment, tmp_path / "one", *MANY, from_nothing=True) as one,
                gateway_process(environment, tmp_path / "two", *MANY, from_nothing=True) as two,
            ):
                for running in (one, two):
                    await running.until_ready(tries=2400)
                await eventually(lambda: all_count(valkey.client, 5))
                async with (
                    clients_of(served, one, 10) as some,
                    clients_of(served, two, 10) as others,
                ):
                    came = await burst([*some, *others], 200)
    assert came[200] + came[429] == 200
    assert 40 <= came[200] <= 41
    assert len(stub.bill) == came[200]


async def all_count(client: object, processes: int) -> bool:
    """Tell if this number of processes has registered in Valkey."""
    found = await asyncio.to_thread(client.zcard, "{image-gateway}:limits:processes")  # type: ignore[attr-defined]
    return int(found) == processes


def workers_of(running: GatewayProcess) -> Sequence[int]:
    """The serving processes, without Python's own helper for shared objects."""
    found = []
    for child in psutil.Process(running.process.pid).children():
        with suppress(psutil.Error):  # it has just ended
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


async def until_refused(running: GatewayProcess) -> None:
    """Return once new requests are refused at once."""
    async with asyncio.timeout(STOP_SECONDS):
        while True:
            try:
                async with httpx2.AsyncClient(timeout=5) as http:
                    await http.get(f"{running.base_url}/health")
            except httpx2.ConnectError:
                return
            except httpx2.TransportError:
                continue
