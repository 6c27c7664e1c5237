"""The parent of several workers: stopped while it replaces them, and workers that die."""

import asyncio
import os
import signal
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.config import Settings
from tests.admin_helpers import admin_secret
from tests.harness import GatewayProcess, Served, gateway_process, process_environment
from tests.limits_helpers import BODY, PATH
from tests.money_helpers import client_of, count_states, eventually, statuses
from tests.rest.test_rest_database_away import Cable
from tests.stub_openai import Fault, Stub
from tests.tooling.test_workers import (
    CALLS,
    MANY,
    STOP_SECONDS,
    clients_of,
    until_refused,
    workers_of,
)

pytestmark = pytest.mark.timeout(300)
IN_FLIGHT = "gateway_generations_in_flight"


async def gauge(running: GatewayProcess, served: Served, name: str, **labels: str) -> float:
    async with httpx2.AsyncClient(timeout=60) as http:
        answer = await http.get(
            f"{running.base_url}/metrics",
            headers={"Authorization": f"Bearer {admin_secret(served)}"},
        )
    assert answer.status_code == 200, answer.text
    return sum(
        sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def serving(running: GatewayProcess, served: Served) -> float:
    """The number of workers that serve, or are about to: each has made its pool."""
    try:
        connections = await gauge(
            running, served, "gateway_database_pool_connections", pool="requests"
        )
    except httpx2.TransportError:  # no worker accepts yet
        return 0.0
    return connections / served.gateway.settings.database_pool_size


@pytest.mark.parametrize("workers_replaced", [0, 1])
async def test_a_stop_takes_effect_while_workers_are_replaced(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path, workers_replaced: int
) -> None:
    stub.faults.add(Fault(hold=True, times=None))
    environment = process_environment(settings) | {"GATEWAY_DRAIN_SECONDS": "300"}
    with gateway_process(environment, tmp_path / "log", *MANY, from_nothing=True) as running:
        await running.until_ready(tries=2400)
        async with clients_of(served, running, CALLS) as clients:
            calls = [asyncio.create_task(client.post(PATH, json=BODY)) for client in clients]
            await stub.until_held(CALLS)
            before = workers_of(running)
            running.process.send_signal(signal.SIGHUP)

            async def one_is_being_replaced() -> bool:
                if workers_replaced == 0:
                    return len(await asyncio.to_thread(workers_of, running)) > len(before)
                # The replacement serves: its predecessor ends its calls, and the parent waits.
                return "worker_retires" in running.log.read_text()

            await eventually(one_is_being_replaced, seconds=STOP_SECONDS)
            running.process.send_signal(signal.SIGTERM)
            await until_refused(running)
            stub.release()
            answers = await asyncio.gather(*calls)
        assert await asyncio.to_thread(running.process.wait, STOP_SECONDS) == 0
    assert statuses(answers) == {200: CALLS}
    assert await count_states(served) == {"posted": CALLS}


async def test_a_killed_workers_state_leaves_the_metrics(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    stub.faults.add(Fault(hold=True, times=None))
    with gateway_process(
        process_environment(settings), tmp_path / "log", *MANY, from_nothing=True
    ) as running:
        await running.until_ready(tries=2400)
        async with clients_of(served, running, CALLS) as clients:
            calls = [asyncio.create_task(client.post(PATH, json=BODY)) for client in clients]
            await stub.until_held(CALLS)
            assert await gauge(running, served, IN_FLIGHT) == CALLS
            for worker in workers_of(running):
                os.kill(worker, signal.SIGKILL)
            stub.release()
            await asyncio.gather(*calls, return_exceptions=True)

        async def none_is_in_flight() -> bool:
            try:
                return await gauge(running, served, IN_FLIGHT) == 0
            except httpx2.TransportError:  # no worker listens yet
                return False

        await eventually(none_is_in_flight, seconds=STOP_SECONDS)


async def test_a_worker_that_cannot_be_replaced_yet_does_not_end_the_others(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    assert settings.database_url is not None
    cable = Cable(settings.database_url.get_secret_value())
    await cable.plug_in()
    environment = process_environment(settings) | {"GATEWAY_DATABASE_URL": cable.url}
    with gateway_process(environment, tmp_path / "log", *MANY, from_nothing=True) as running:
        await running.until_ready(tries=2400)

        async def are_two() -> bool:
            return await serving(running, served) == 2

        await eventually(are_two, seconds=STOP_SECONDS)
        [dead, other] = workers_of(running)
        await cable.cut()
        os.kill(dead, signal.SIGKILL)

        async def could_not_start() -> bool:
            return "worker_not_started" in running.log.read_text()

        await eventually(could_not_start, seconds=STOP_SECONDS)
        async with client_of(running.base_url, await served.key()) as http:
            assert (await http.get("/health")).status_code == 200
        await cable.plug_in()

        await eventually(are_two, seconds=STOP_SECONDS)
        async with client_of(running.base_url, await served.key()) as http:
            assert other in workers_of(running)
            await running.until_ready(tries=2400)

            async def is_bought() -> bool:
                try:
                    return (await http.post(PATH, json=BODY, timeout=5)).status_code == 200
                except httpx2.TransportError:
                    return False

            await eventually(is_bought, seconds=STOP_SECONDS)
    await cable.cut()
    assert len(stub.bill) > 0
