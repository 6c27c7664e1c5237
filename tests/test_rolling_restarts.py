"""Gateways are restarted one after another under load, and no request that was taken is lost."""

import asyncio
import itertools
import logging
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
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
from tests.load_helpers import Arrivals
from tests.money_helpers import count_states, image_body
from tests.stub_openai import Stub

REPLICAS = 2
STOP_SECONDS = 60
ANSWER_SECONDS = 60
LOOK_SECONDS = 0.2
OVERLOADED = 503
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drill:
    """How much of it; `restarts` of every replica."""

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
    met: Counter[str] = field(default_factory=Counter)

    async def send(self, number: int) -> httpx2.Response:
        """The answer of the first that takes the request."""
        headers = {"Authorization": f"Bearer {self.key}", "Idempotency-Key": f"drill-{number}"}
        body = image_body(f"circle {number:05d}")
        async with httpx2.AsyncClient(timeout=ANSWER_SECONDS, headers=headers) as http:
            for turn in range(number, number + 2 * REPLICAS):
                if not self.replicas:
                    break
                base_url = self.replicas[turn % len(self.replicas)]
                try:
                    answer = await http.post(f"{base_url}{PATH}", json=body)
                except httpx2.ConnectError:
                    self._leave(base_url, "refused")
                except httpx2.TransportError:
                    self._leave(base_url, "cut off")
                else:
                    if answer.status_code != OVERLOADED:
                        return answer
                    self._leave(base_url, "told to go elsewhere")
        raise AssertionError(f"nobody took the request: {self.met}")

    async def look(self) -> None:
        """Ask everyone whether it is ready; who is not gets no more."""
        async with httpx2.AsyncClient(timeout=ANSWER_SECONDS) as http:
            for base_url in list(self.replicas):
                with suppress(httpx2.TransportError):
                    if (await http.get(f"{base_url}/ready")).status_code == OVERLOADED:
                        self._leave(base_url, "not ready")

    def _leave(self, base_url: str, reason: str) -> None:
        if base_url in self.replicas:
            self.met[reason] += 1
            self.replicas.remove(base_url)


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
            running.append(await start(stack))
        await looks.end()
        return await arrivals.end()


async def drill(
    served: Served, settings: Settings, stub: Stub, valkey: Valkey, plan: Drill
) -> None:
    """Nothing that was taken is lost, bought twice or left open, and the bill is the ledger."""
    await served.budget("1000")
    await limit(served, "requests", 1_000_000)
    stub.configure(latency_seconds=plan.provider_seconds)
    environment = process_environment(settings) | {
        "GATEWAY_REDIS_URL": valkey.url,
        "GATEWAY_DRAIN_SECONDS": "25",
        "GATEWAY_SHUTDOWN_DELAY_SECONDS": "1",
    }
    balancer = Balancer(secret_of(await served.key()))
    answers = await restart_under_load(balancer, environment, settings.data_dir, plan)
    log.info("%d requests, %s", len(answers), dict(balancer.met))
    assert Counter(answer.status_code for answer in answers) == {200: len(answers)}
    # Of those that were cut off or told to go elsewhere, none had been taken.
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
