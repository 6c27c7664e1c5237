"""M5: a gateway that is killed at any step loses no bill and leaves no hold behind.

The other gateway on the same database sweeps up; time is moved in the database.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import text

from gateway.config import Settings
from gateway.db.addresses import create_engine, database_url
from tests.harness import GatewayProcess, Served
from tests.money_helpers import (
    age_unknown,
    books,
    budget_rows,
    client_of,
    count_states,
    eventually,
    gateway_processes,
    post_image,
    until_states,
)
from tests.stub_openai import Fault, Stub

CALLS = 5


@asynccontextmanager
async def victim(
    settings: Settings, served: Served, folder: Path
) -> AsyncIterator[tuple[GatewayProcess, httpx2.AsyncClient]]:
    """A gateway process to kill, and a client of it with an ample budget."""
    await served.budget("10")
    with gateway_processes(settings, folder, 1) as [process]:
        await process.until_ready()
        async with client_of(process.base_url, await served.key()) as http:
            yield process, http


async def expect_every_bill_booked(served: Served, stub: Stub, *, holds: int) -> None:
    """Expect, after time and the sweeper, one final line each, nothing held, and no unbooked bill.

    What is void was never sent: its worker's journal says so.
    """
    await age_unknown(served)
    await served.sweep()
    booked = await books(served)
    assert len(booked) == holds
    assert [b.lines for b in booked if b.state != "posted"] == [
        (("void", 0),) if b.state == "void" else (("post_est", b.held_nano),)
        for b in booked
        if b.state != "posted"
    ]
    assert len(stub.calls) <= sum(b.state != "void" for b in booked)
    assert len(stub.bill) <= holds
    billed = sum(line.cost_nano_usd for line in stub.bill)
    total = await served.ledger_total()
    assert billed <= total
    assert [row[2:] for row in await budget_rows(served)] == [(total, 0)]
    await served.check_invariants()


async def killed_in_flight(
    settings: Settings, served: Served, stub: Stub, folder: Path, fault: Fault
) -> None:
    stub.faults.add(fault)
    async with victim(settings, served, folder) as (process, http):
        tasks = [asyncio.create_task(post_image(http)) for _ in range(CALLS)]
        await stub.until_held(CALLS)
        process.kill()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, httpx2.TransportError) for one in ended)
    assert await count_states(served) == {"held": CALLS}
    stub.faults.clear()
    stub.release()
    await stub.until_idle()
    assert len(stub.bill) == CALLS
    await expect_every_bill_booked(served, stub, holds=CALLS)


async def test_calls_in_flight_at_a_kill_before_the_bill_are_booked(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    await killed_in_flight(settings, served, stub, tmp_path, Fault(hold=True, times=None))


async def test_calls_in_flight_at_a_kill_after_the_bill_are_booked(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    fault = Fault(hold=True, bill_at_arrival=True, times=None)
    await killed_in_flight(settings, served, stub, tmp_path, fault)


async def killed_after_answers(
    settings: Settings, served: Served, stub: Stub, folder: Path
) -> None:
    """Kill the gateway at the first answer, with other calls just behind it."""
    async with victim(settings, served, folder) as (process, http):
        tasks = [asyncio.create_task(post_image(http)) for _ in range(CALLS * 4)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        process.kill()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    await stub.until_idle()
    answered = [one for one in ended if isinstance(one, httpx2.Response)]
    assert {answer.status_code for answer in answered} == {200}
    acknowledged = {
        answer.headers["x-gateway-generation-id"]
        for answer in answered
        if answer.headers["x-gateway-cost-status"] == "actual"
    }
    rows = await served.owner_sql("SELECT id FROM reservation WHERE state = 'posted'")
    assert acknowledged <= {str(row.id) for row in rows}
    [count] = await served.owner_sql("SELECT count(*) FROM reservation")
    await expect_every_bill_booked(served, stub, holds=int(count[0]))


async def test_calls_answered_before_a_kill_are_posted_and_the_rest_is_booked(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    await killed_after_answers(settings, served, stub, tmp_path)


@asynccontextmanager
async def locked(settings: Settings, statement: str) -> AsyncIterator[None]:
    """Hold the locks of a statement as the owner."""
    assert settings.database_url is not None
    engine = create_engine(database_url(settings.database_url.get_secret_value()), role=None)
    async with engine.begin() as connection:
        await connection.execute(text(statement))
        yield
    await engine.dispose()


@asynccontextmanager
async def data_keys_locked(served: Served, http: httpx2.AsyncClient) -> AsyncIterator[None]:
    """Keep the client's next call from opening its tenant's provider key, after its hold.

    The wrapped data key that comes with the caller names a master key that does not exist, so it is
    read again, from a locked table.
    """
    await served.owner_sql("UPDATE data_key SET master_key_id = 'elsewhere'")
    assert (await http.get("/v1/models")).status_code == 200
    async with locked(served.gateway.settings, "LOCK TABLE data_key IN ACCESS EXCLUSIVE MODE"):
        yield


async def waiting_for_locks(served: Served) -> bool:
    """Tell if a statement of this database waits for a lock."""
    [row] = await served.owner_sql(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock'"
    )
    return bool(row[0])


async def test_a_kill_while_the_hold_is_being_committed_buys_nothing_and_leaves_no_hold(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    async with victim(settings, served, tmp_path) as (process, http):
        assert (await post_image(http)).status_code == 200
        async with locked(settings, "SELECT 1 FROM budget_period FOR UPDATE"):
            tasks = [asyncio.create_task(post_image(http)) for _ in range(CALLS)]
            await eventually(lambda: waiting_for_locks(served))
            process.kill()
            await asyncio.gather(*tasks, return_exceptions=True)

        async def settled_down() -> bool:
            return not await waiting_for_locks(served)

        await eventually(settled_down)
    assert len(stub.calls) == 1
    [count] = await served.owner_sql("SELECT count(*) FROM reservation")
    await expect_every_bill_booked(served, stub, holds=int(count[0]))


async def test_a_kill_between_hold_and_call_buys_nothing_and_leaves_no_hold(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    """The tenant's own key is opened last before the call; its data key is locked away."""
    async with served.http(await served.key()) as http:
        await http.put("/v1/credentials/openai", json={"secret": "sk-tenant-own-1234"})
    async with (
        victim(settings, served, tmp_path) as (process, http),
        data_keys_locked(served, http),
    ):
        task = asyncio.create_task(post_image(http))
        await until_states(served, {"held": 1})
        process.kill()
        await asyncio.gather(task, return_exceptions=True)
    assert stub.calls == []
    await served.sweep()
    [booked] = await books(served)
    assert (booked.state, booked.outcome, booked.lines) == ("void", "not_sent", (("void", 0),))
    await expect_every_bill_booked(served, stub, holds=1)


async def test_a_gateway_told_to_stop_marks_what_it_cannot_finish_as_unknown(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    stub.faults.add(Fault(hold=True, times=None))
    quick = settings.model_copy(update={"drain_seconds": 1})
    async with victim(quick, served, tmp_path) as (process, http):
        tasks = [asyncio.create_task(post_image(http)) for _ in range(CALLS)]
        await stub.until_held(CALLS)
        os.kill(process.process.pid, signal.SIGTERM)
        assert await asyncio.to_thread(process.process.wait, 15) == 0
        await asyncio.gather(*tasks, return_exceptions=True)
    assert await count_states(served) == {"unknown": CALLS}
    stub.faults.clear()
    stub.release()
    await stub.until_idle()
    await expect_every_bill_booked(served, stub, holds=CALLS)


async def test_a_gateway_told_to_stop_lets_paid_calls_finish(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    stub.faults.add(Fault(hold=True, times=None))
    async with victim(settings, served, tmp_path) as (process, http):
        tasks = [asyncio.create_task(post_image(http)) for _ in range(CALLS)]
        await stub.until_held(CALLS)
        os.kill(process.process.pid, signal.SIGTERM)
        stub.release()
        answers = await asyncio.gather(*tasks)
        assert {answer.status_code for answer in answers} == {200}
    assert await count_states(served) == {"posted": CALLS}
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in stub.bill)


STEPS = ["before the bill", "after the bill", "after the answer"]


@pytest.mark.full
@pytest.mark.parametrize("step", STEPS * 20)
async def test_twenty_kills_at_each_step_lose_nothing(
    step: str, settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    if step == "after the answer":
        await killed_after_answers(settings, served, stub, tmp_path)
    else:
        fault = Fault(hold=True, bill_at_arrival=step == "after the bill", times=None)
        await killed_in_flight(settings, served, stub, tmp_path, fault)
