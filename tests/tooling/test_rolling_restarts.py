"""Gateways are restarted one after another under load, and no accepted request is lost."""

import asyncio
import itertools
import logging
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from gateway.config import Settings
from tests.harness import (
    GatewayProcess,
    Served,
    gateway_process,
    process_environment,
    secret_of,
)
from tests.limits_helpers import PATH, Valkey, limit, running_valkey
from tests.load_helpers import Arrivals, until_passed
from tests.money_helpers import count_states, image_body
from tests.stub_openai import Stub

REPLICAS = 2
STOP_SECONDS = 60
ANSWER_SECONDS = 60
LOOK_SECONDS = 0.2
TRIES = 30
RETRY_SECONDS = 1.0
OVERLOADED = 503
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drill:
    """The size of the drill; every replica is restarted `restarts` times."""

    restarts: int
    per_second: float
    provider_seconds: float


@dataclass
class Balancer:
    """Sends each request to the next gateway that is ready, and moves on when one is stopping.

    What was cut off without an answer is sent again under the same idempotency key, as a client
    may: had the gateway taken it, the second answer would say so.
    """

    key: str
    replicas: list[str] = field(default_factory=list)
    unready: set[str] = field(default_factory=set)
    met: Counter[str] = field(default_factory=Counter)

    async def send(self, number: int) -> httpx2.Response:
        """The answer of the first replica that accepts the request."""
        headers = {"Authorization": f"Bearer {self.key}", "Idempotency-Key": f"drill-{number}"}
        body = image_body(f"circle {number:05d}")
        async with httpx2.AsyncClient(timeout=ANSWER_SECONDS, headers=headers) as http:
            for turn in range(number, number + TRIES):
                ready = [url for url in self.replicas if url not in self.unready]
                among = ready or self.replicas
                try:
                    answer = await http.post(f"{among[turn % len(among)]}{PATH}", json=body)
                except httpx2.ConnectError:
                    self.met["refused"] += 1
                except httpx2.TransportError:
                    self.met["cut off"] += 1
                else:
                    if answer.status_code != OVERLOADED:
                        return answer
                    self.met["told to go elsewhere"] += 1
                if turn > number:  # everybody was asked
                    await until_passed(RETRY_SECONDS)
        raise AssertionError(f"no replica took the request: {self.met}")

    async def look(self) -> None:
        """Ask every replica if it is ready."""
        async with httpx2.AsyncClient(timeout=ANSWER_SECONDS) as http:
            for base_url in list(self.replicas):
                try:
                    is_ready = (await http.get(f"{base_url}/ready")).status_code != OVERLOADED
                except httpx2.TransportError:
                    is_ready = False
                if is_ready:
                    self.unready.discard(base_url)
                else:
                    self.unready.add(base_url)


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


async def restart_under_load(
    balancer: Balancer, environment: dict[str, str], folder: Path, plan: Drill
) -> list[httpx2.Response]:
    """Every answer that came while the gateways were restarted, one after another."""
    names = itertools.count()

    async def start(stack: ExitStack) -> GatewayProcess:
        process = stack.enter_context(
            gateway_process(environment, folder / f"replica-{next(names)}.log")
        )
        await process.until_ready(tries=2400)
        balancer.replicas.append(process.base_url)
        return process

    arrivals = Arrivals(balancer.send, 1 / plan.per_second)
    looks = Arrivals(lambda _: balancer.look(), LOOK_SECONDS)
    with ExitStack() as stack:
        running = [await start(stack) for _ in range(REPLICAS)]
        arrivals.begin()
        looks.begin()
        for _ in range(plan.restarts * REPLICAS):
            oldest = running.pop(0)
            oldest.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(oldest.process.wait, STOP_SECONDS) == 0
            balancer.replicas.remove(oldest.base_url)
            running.append(await start(stack))
        await looks.end()
        return await arrivals.end()


async def drill(
    served: Served, settings: Settings, stub: Stub, valkey: Valkey, plan: Drill
) -> None:
    """Expect no accepted call to be lost, bought twice or left open; the bill is the ledger."""
    await served.budget("1000")
    await limit(served, "requests", 1_000_000)
    stub.configure(latency_seconds=plan.provider_seconds)
    environment = process_environment(settings) | {
        "GATEWAY_REDIS_URL": valkey.url,
        "GATEWAY_DRAIN_SECONDS": "25",
        "GATEWAY_SHUTDOWN_DELAY_SECONDS": "1",
        # The drill is about restarts: a busy machine must not refuse a request for being late.
        "GATEWAY_ADMISSION_TIMEOUT_MS": "60000",
    }
    balancer = Balancer(secret_of(await served.key()))
    answers = await restart_under_load(balancer, environment, settings.data_dir, plan)
    log.info("%d requests, %s", len(answers), dict(balancer.met))
    assert Counter(answer.status_code for answer in answers) == {200: len(answers)}
    # No request that was cut off or sent elsewhere had been accepted.
    assert not [answer for answer in answers if "idempotent-replayed" in answer.headers]
    assert await count_states(served) == {"posted": len(answers)}
    assert len(stub.bill) == len(answers)
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in stub.bill)


@pytest.mark.timeout(300)
async def test_a_rolling_restart_under_load_loses_no_request(
    served: Served, settings: Settings, stub: Stub, valkey: Valkey
) -> None:
    plan = Drill(restarts=1, per_second=10, provider_seconds=0.5)
    await drill(served, settings, stub, valkey, plan)


@pytest.mark.full
@pytest.mark.timeout(900)
async def test_ten_rolling_restarts_at_20_requests_a_second_lose_no_request(
    served: Served, settings: Settings, stub: Stub, valkey: Valkey
) -> None:
    plan = Drill(restarts=10, per_second=20, provider_seconds=5)
    await drill(served, settings, stub, valkey, plan)
