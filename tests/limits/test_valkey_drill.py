"""M12 at full size: a Valkey that fails under load costs no money and no answer.

The small version, with both gateways in one process, is in test_limits_valkey.py.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx2
import pytest

from gateway.config import Settings
from gateway.money import format_usd
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import Served
from tests.limits_helpers import Valkey, limit, running_valkey
from tests.load_helpers import Arrivals, until_passed
from tests.money_helpers import client_of, gateway_processes, post_image
from tests.stub_openai import Stub

AMPLE = 1_000_000
PER_SECOND = 30
"""Of each of the two tenants."""
PHASE_SECONDS = 12
LEASE_SECONDS = "3.0"
TENTHS = {"tenant": 5, "user": 6, "key": 7}
"""The tenths of the poor tenant's requests that its budgets admit, by owner."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Came:
    """One answer: its start time, its status and its duration."""

    at: float
    status: int
    seconds: float


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


def sender(clients: Sequence[httpx2.AsyncClient]) -> Callable[[int], Coroutine[None, None, Came]]:
    """Sends to each gateway in turn."""

    async def send(number: int) -> Came:
        started = time.perf_counter()
        answer = await post_image(clients[number % len(clients)], f"circle {number:05d}")
        return Came(started, answer.status_code, time.perf_counter() - started)

    return send


async def limited_key(served: Served, tenant_id: UUID) -> IssuedKey:
    """A key of a user, under limits that are never reached."""
    key = await served.key(tenant_id=tenant_id, user="drill")
    for kind in ("requests", "images", "concurrent"):
        await limit(served, kind, AMPLE, tenant_id=tenant_id)
        await limit(served, kind, AMPLE, tenant_id=tenant_id, api_key_id=key.id)
    return key


async def nearly_spend(served: Served, key: IssuedKey, tenant_id: UUID, cost_nano: int) -> None:
    """Budgets of tenant, user and key that run out one after another, the first during a fault."""
    asked = 3 * PHASE_SECONDS * PER_SECOND
    owners: dict[str, dict[str, Any]] = {
        "tenant": {},
        "user": {"user_id": key.user_id},
        "key": {"api_key_id": key.id},
    }
    for owner, tenths in TENTHS.items():
        amount = format_usd(asked * cost_nano * tenths // 10)
        await served.budget(amount, window="total", tenant_id=tenant_id, **owners[owner])


async def fail(valkey: Valkey, mishap: str) -> None:
    """Cause this fault for one phase, then restore Valkey."""
    if mishap == "flush":
        for _ in range(PHASE_SECONDS):
            await asyncio.to_thread(valkey.flush)
            await until_passed(1)
        return
    getattr(valkey, mishap)()
    await until_passed(PHASE_SECONDS)
    if mishap == "kill":
        await asyncio.to_thread(valkey.start_again)
    else:
        valkey.resume()


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mishap", ["kill", "pause", "flush"])
async def test_a_failing_valkey_costs_no_money_and_no_answer(
    served: Served, settings: Settings, stub: Stub, valkey: Valkey, mishap: str
) -> None:
    rich, poor = await served.tenant("rich"), await served.tenant("poor")
    keys = [await limited_key(served, tenant) for tenant in (rich, poor)]
    await served.budget("1000", tenant_id=rich)
    environment = {"GATEWAY_REDIS_URL": valkey.url, "GATEWAY_LIMIT_LEASE_SECONDS": LEASE_SECONDS}
    with gateway_processes(settings, settings.data_dir, 2, **environment) as running:
        for process in running:
            await process.until_ready()
        groups = [[client_of(process.base_url, key) for process in running] for key in keys]
        for number in range(10):
            assert (await sender(groups[0])(number)).status == 200
        await nearly_spend(served, keys[1], poor, stub.bill[-1].cost_nano_usd)
        loads = [Arrivals(sender(clients), 1 / PER_SECOND) for clients in groups]
        for load in loads:
            load.begin()
        await until_passed(PHASE_SECONDS)
        failed_at = time.perf_counter()
        await fail(valkey, mishap)
        mended_at = time.perf_counter()
        await until_passed(PHASE_SECONDS)
        answered, sometimes = [await load.end() for load in loads]
        for client in (client for clients in groups for client in clients):
            await client.aclose()
    report(mishap, answered, failed_at, mended_at)
    assert {came.status for came in answered} == {200}
    assert {came.status for came in sometimes} == {200, 402}
    bought = [came for came in (*answered, *sometimes) if came.status == 200]
    assert len(stub.bill) == len(bought) + 10
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in stub.bill)
    rows = await served.owner_sql(
        "SELECT p.spent_nano, p.held_nano, b.limit_nano FROM budget_period p"
        " JOIN budget b ON b.id = p.budget_id"
    )
    assert [row for row in rows if row.held_nano or row.spent_nano > row.limit_nano] == []


def report(mishap: str, answered: Sequence[Came], failed_at: float, mended_at: float) -> None:
    """Print the figures of docs/performance.md; they depend on the machine and are not asserted."""
    phases = {
        "before": [came for came in answered if came.at < failed_at],
        "while": [came for came in answered if failed_at <= came.at < mended_at],
        "after": [came for came in answered if came.at >= mended_at],
    }
    for name, phase in phases.items():
        took = sorted(came.seconds * 1000 for came in phase)
        log.info(
            "valkey %s, %s: %d answers, p50 %.1f ms, p99 %.1f ms, longest %.1f ms",
            *(mishap, name, len(took), took[len(took) // 2], took[len(took) * 99 // 100], took[-1]),
        )
