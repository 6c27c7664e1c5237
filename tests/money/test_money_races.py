"""M1 to M3: no race overspends a budget, and a refused request is not bought.

The stub holds every call, so that nothing is given back while the others still race.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from gateway.config import Settings
from gateway.money import format_usd
from tests.harness import GatewayProcess, Served, error_of, owner_connections
from tests.money_helpers import (
    budget_rows,
    client_of,
    count_states,
    deadlocks,
    gateway_processes,
    post_image,
    quote_nano,
    statuses,
)
from tests.stub_openai import Fault, Stub

PATIENT = {"GATEWAY_ADMISSION_TIMEOUT_MS": "60000"}
"""Longer than any wait for a connection on a busy machine: every request must reach the race."""
OWNERS = ("tenant", "key", "user", "house")


@pytest.fixture
async def held_stub(stub: Stub) -> AsyncIterator[Stub]:
    """A stub at which every call waits until it is released."""
    stub.faults.add(Fault(hold=True, times=None))
    yield stub
    stub.faults.clear()
    stub.release()


async def race(
    served: Served,
    stub: Stub,
    processes: list[GatewayProcess],
    *,
    requests: int,
    admitted: int,
    tight: str = "tenant",
) -> None:
    """Start all requests at once on a new tenant with budgets of every owner, one of them tight.

    That one admits `admitted` of them. Every prompt is as long as the one that is quoted.
    """
    tenant = await served.tenant(f"race-{tight}-{len(stub.calls)}")
    key = await served.key(tenant_id=tenant, user="ann")
    async with served.http(key) as http:
        quote = await quote_nano(http)
    limit = admitted * quote + quote - 1
    limits = dict.fromkeys(OWNERS, requests * quote) | {tight: limit}
    spent_by_house = await served.ledger_total()
    [user] = await served.owner_sql("SELECT id FROM tenant_user WHERE tenant_id = :t", t=tenant)
    await served.budget(format_usd(limits["key"]), tenant_id=tenant, api_key_id=key.id)
    await served.budget(format_usd(limits["user"]), tenant_id=tenant, user_id=user.id)
    await served.budget(format_usd(limits["tenant"]), tenant_id=tenant)
    await served.house_budget(format_usd(spent_by_house + limits["house"]))
    before = len(stub.calls)
    clients = [client_of(process.base_url, key) for process in processes]
    tasks = [
        asyncio.create_task(post_image(clients[i % len(clients)], f"circle {i:05d}"))
        for i in range(requests)
    ]
    await stub.until_held(admitted, 60)
    refused = await all_but(tasks, admitted)
    assert len(stub.calls) - before == admitted
    stub.release()
    answers = await asyncio.gather(*tasks)
    for client in clients:
        await client.aclose()
    assert statuses(refused) == {402: requests - admitted}
    assert statuses(answers) == {200: admitted, 402: requests - admitted}
    assert len(stub.calls) - before == admitted
    assert stub.totals.max_in_flight >= admitted
    await served.check_invariants()
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in stub.bill)
    spent = sum(line.cost_nano_usd for line in stub.bill[-admitted:])
    rows = {owner: rest for owner, *rest in await budget_rows(served)}
    assert rows == {owner: [limits[owner], spent, 0] for owner in OWNERS} | {
        "house": [spent_by_house + limits["house"], spent_by_house + spent, 0]
    }


async def all_but(tasks: list[asyncio.Task[httpx2.Response]], count: int) -> list[httpx2.Response]:
    """The answers, as soon as all but `count` have come."""
    finished: list[httpx2.Response] = []
    for next_one in asyncio.as_completed(tasks):
        finished.append(await next_one)
        if len(finished) == len(tasks) - count:
            break
    return finished


async def test_any_owners_budget_for_20_of_80_racing_requests_buys_exactly_20(
    settings: Settings, served: Served, held_stub: Stub, tmp_path: Path
) -> None:
    with gateway_processes(settings, tmp_path, 2, **PATIENT) as processes:
        await asyncio.gather(*(process.until_ready() for process in processes))
        for tight in OWNERS:
            await race(served, held_stub, processes, requests=80, admitted=20, tight=tight)


@pytest.mark.full
@pytest.mark.timeout(1200)
async def test_a_budget_that_admits_50_of_500_racing_requests_buys_exactly_50_every_time(
    settings: Settings, served: Served, held_stub: Stub, tmp_path: Path
) -> None:
    with gateway_processes(settings, tmp_path, 4, **PATIENT) as processes:
        await asyncio.gather(*(process.until_ready() for process in processes))
        for number in range(20):
            tight = OWNERS[number % len(OWNERS)]
            await race(served, held_stub, processes, requests=500, admitted=50, tight=tight)


async def test_a_budget_smaller_than_the_call_refuses_it_and_holds_nothing(
    served: Served, stub: Stub
) -> None:
    async with served.http(await served.key()) as http:
        quote = await quote_nano(http)
        await served.budget(format_usd(quote - 1))
        answer = await post_image(http)
    assert answer.status_code == 402
    assert error_of(answer)["code"] == "budget_exceeded"
    assert answer.headers["x-should-retry"] == "false"
    assert stub.calls == []
    assert await count_states(served) == {}
    assert [row[3] for row in await budget_rows(served)] == [0]


async def test_a_call_is_settled_while_a_budget_that_it_does_not_count_in_is_locked(
    served: Served,
) -> None:
    ann, bob = await served.key(), await served.key()
    for key in (ann, bob):
        await served.budget("1", window="total", api_key_id=key.id)
    async with served.http(bob) as http:
        assert (await post_image(http)).status_code == 200
    async with (
        owner_connections(served.gateway.settings, 1) as [other],
        other.transaction(),
        served.http(ann) as http,
    ):
        await other.execute(
            "SELECT 1 FROM budget_period x WHERE x.budget_id IN"
            " (SELECT b.id FROM budget b WHERE b.api_key_id = $1) FOR UPDATE",
            bob.id,
        )
        answer = await post_image(http)
    assert (answer.status_code, answer.headers["x-gateway-cost-status"]) == (200, "actual")


async def test_a_budget_of_exactly_the_quote_admits_the_call_once(
    served: Served, held_stub: Stub
) -> None:
    async with served.http(await served.key()) as http:
        await served.budget(format_usd(await quote_nano(http)), window="total")
        first = asyncio.create_task(post_image(http))
        await held_stub.until_held(1)
        assert (await post_image(http)).status_code == 402
        held_stub.release()
        assert (await first).status_code == 200
    assert len(held_stub.calls) == 1


async def contested_keys(served: Served, quote: int, calls: int) -> list[str]:
    """Three keys under a tenant's budget for so many calls, each under one of its own for half.

    The budgets are made so that the tenant's stands before, between and after the others.
    """
    early, late = await served.key(), await served.key()
    of_user = await served.key(user="ann")
    half, whole = format_usd(calls // 2 * quote), format_usd(calls * quote)
    await served.budget(half, api_key_id=early.id, window="day")
    await served.budget(whole, window="month")
    await served.budget(half, api_key_id=late.id, window="total")
    rows = await served.owner_sql("SELECT id FROM tenant_user")
    await served.budget(half, user_id=rows[0][0], window="week")
    await served.budget(whole, window="total")
    await served.house_budget(whole, window="week")
    return [key.secret.reveal() for key in (early, late, of_user)]


async def test_two_budgets_held_in_either_order_neither_deadlock_nor_overspend(
    settings: Settings, served: Served, held_stub: Stub, tmp_path: Path
) -> None:
    async with served.http(await served.key()) as http:
        quote = await quote_nano(http)
    keys = await contested_keys(served, quote, 12)
    with gateway_processes(settings, tmp_path, 2, **PATIENT) as processes:
        await asyncio.gather(*(process.until_ready() for process in processes))
        clients = [client_of(process.base_url, key) for process in processes for key in keys]
        tasks = [
            asyncio.create_task(post_image(clients[i % len(clients)], f"circle {i:05d}"))
            for i in range(180)
        ]
        await held_stub.until_held(12, 60)
        refused = await all_but(tasks, 12)
        assert statuses(refused) == {402: 168}
        held_stub.release()
        answers = await asyncio.gather(*tasks)
        for client in clients:
            await client.aclose()
    assert statuses(answers) == {200: 12, 402: 168}
    assert len(held_stub.calls) == 12
    assert await deadlocks(served) == 0
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in held_stub.bill)
    assert all(spent + held <= limit for _, limit, spent, held in await budget_rows(served)), (
        await budget_rows(served)
    )


async def churn(
    settings: Settings, served: Served, stub: Stub, folder: Path, *, requests: int
) -> None:
    """Holds and settlements of the same budgets at the same time, in two processes."""
    async with served.http(await served.key()) as http:
        quote = await quote_nano(http)
    keys = await contested_keys(served, quote, requests // 3)
    with gateway_processes(settings, folder, 2, **PATIENT) as processes:
        await asyncio.gather(*(process.until_ready() for process in processes))
        clients = [client_of(process.base_url, key) for process in processes for key in keys]
        answers: list[httpx2.Response] = []
        for start in range(0, requests, 100):
            answers += await asyncio.gather(
                *(
                    post_image(clients[i % len(clients)], f"circle {i:05d}")
                    for i in range(start, min(start + 100, requests))
                )
            )
        for client in clients:
            await client.aclose()
    counted = statuses(answers)
    assert counted.keys() == {200, 402}, counted
    assert counted[200] == len(stub.bill) == len(stub.calls)
    assert await deadlocks(served) == 0
    assert await count_states(served) == {"posted": counted[200]}
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in stub.bill)
    rows = await budget_rows(served)
    assert all(spent <= limit and held == 0 for _, limit, spent, held in rows), rows


async def test_holds_and_settlements_of_shared_budgets_never_wait_for_each_other_in_a_ring(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    await churn(settings, served, stub, tmp_path, requests=300)


@pytest.mark.full
@pytest.mark.timeout(1200)
async def test_5000_requests_on_shared_budgets_neither_deadlock_nor_overspend(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    await churn(settings, served, stub, tmp_path, requests=5000)
