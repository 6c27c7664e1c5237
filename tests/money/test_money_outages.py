"""M6 and M11: while Postgres is away, paid calls are not lost and no new call is bought."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from gateway.config import Settings
from tests.harness import GPT2, Served, error_of, make_settings, owner_connections, served_gateway
from tests.image_helpers import png
from tests.money_helpers import (
    budget_rows,
    client_of,
    count_states,
    eventually,
    post_image,
    statuses,
    terse_log,
    until_states,
)
from tests.money_postgres import OwnPostgres, Relay, own_postgres, relayed
from tests.stub_openai import Fault, Stub

REFUSAL_SECONDS = 1.0
LATEST_SETTLE = """
SELECT max(query_start) FROM pg_stat_activity WHERE datname = current_database()
    AND query LIKE '%FROM settle(%' AND state = 'idle' AND pid <> pg_backend_pid()
"""
"""The start of the latest settlement that has ended."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with terse_log():
        yield


@pytest.fixture
async def own() -> AsyncIterator[OwnPostgres]:
    async with own_postgres() as server:
        yield server


@pytest.fixture
async def on_own(own: OwnPostgres, stub: Stub, tmp_path: Path) -> AsyncIterator[Served]:
    """A gateway on a server that the test may kill."""
    settings = make_settings(
        own.url, tmp_path, OPENAI_BASE_URL=stub.base_url, settle_wait_seconds=0.2
    )
    async with served_gateway(settings) as served:
        yield served
        await expect_agreeing_books(served)


async def expect_agreeing_books(served: Served) -> None:
    """Check the invariants without the pool, whose connections may still be broken."""
    assert await served.owner_sql("SELECT what, id FROM invariant_break") == []


async def timed(request: asyncio.Future[httpx2.Response]) -> tuple[httpx2.Response, float]:
    """The answer and its duration in seconds."""
    started = time.monotonic()
    return await request, time.monotonic() - started


async def expect_quick_refusals(served: Served, stub: Stub, keys: list[str]) -> None:
    """Expect 503 with Retry-After for known and unknown keys alike, and no call."""
    before = len(stub.calls)
    for key in keys:
        async with client_of(served.base_url, key) as http:
            answer, seconds = await timed(asyncio.ensure_future(post_image(http)))
        assert (answer.status_code, error_of(answer)["code"]) == (503, "database_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert seconds < REFUSAL_SECONDS
    assert len(stub.calls) == before


async def outage_in_flight(
    served: Served, own: OwnPostgres, stub: Stub, *, calls: int, seconds: float
) -> None:
    stub.faults.add(Fault(hold=True, times=calls))
    known, fresh = await served.key(), await served.key()
    await served.budget("10")
    async with client_of(served.base_url, known) as http:
        tasks = [asyncio.create_task(post_image(http)) for _ in range(calls)]
        await stub.until_held(calls)
        await asyncio.to_thread(own.kill)
        ends = time.monotonic() + seconds
        refused = 0
        while refused < 3 or time.monotonic() < ends:
            await expect_quick_refusals(
                served, stub, [known.secret.reveal(), fresh.secret.reveal()]
            )
            refused += 1
        stub.release()
        answers = await asyncio.gather(*tasks)
    assert statuses(answers) == {200: calls}
    assert {answer.headers["x-gateway-cost-status"] for answer in answers} == {"pending"}
    await own.start()
    await until_states(served, {"posted": calls}, 60)
    billed = sum(line.cost_nano_usd for line in stub.bill)
    assert await served.ledger_total() == billed
    assert [row[2:] for row in await budget_rows(served)] == [(billed, 0)]
    assert len(stub.calls) == calls
    async with client_of(served.base_url, fresh) as http:

        async def serves_again() -> bool:
            return (await post_image(http)).status_code == 200

        await eventually(serves_again)


async def test_calls_in_flight_when_postgres_dies_are_delivered_and_settled_once_it_is_back(
    on_own: Served, own: OwnPostgres, stub: Stub
) -> None:
    await outage_in_flight(on_own, own, stub, calls=20, seconds=0)


@pytest.mark.full
@pytest.mark.timeout(300)
async def test_fifty_calls_in_flight_survive_a_minute_without_postgres(
    on_own: Served, own: OwnPostgres, stub: Stub
) -> None:
    await outage_in_flight(on_own, own, stub, calls=50, seconds=60)


async def kills_under_load(served: Served, own: OwnPostgres, stub: Stub, *, kills: int) -> None:
    """Kill the server under constant load; every answer must be in the books afterwards."""
    key = await served.key()
    await served.budget("1000")
    answers: list[httpx2.Response] = []
    stopping = asyncio.Event()

    async def ask(http: httpx2.AsyncClient) -> None:
        while not stopping.is_set():
            answers.append(await post_image(http))

    async with client_of(served.base_url, key) as http:
        clients = [asyncio.create_task(ask(http)) for _ in range(8)]
        for _ in range(kills):
            billed = len(stub.bill)
            await stub.until_billed(billed + 20)
            await asyncio.to_thread(own.kill)
            await own.start()
        await stub.until_billed(len(stub.bill) + 20)
        stopping.set()
        await asyncio.gather(*clients)
    assert statuses(answers).keys() <= {200, 503}

    async def resolved() -> bool:
        return (await count_states(served)).keys() <= {"posted", "void"}

    await eventually(resolved, 60)
    told = {
        answer.headers["x-gateway-generation-id"] for answer in answers if answer.status_code == 200
    }
    rows = await served.owner_sql("SELECT id FROM reservation WHERE state = 'posted'")
    assert {str(row.id) for row in rows} == told
    assert len(stub.bill) == len(told)
    billed_nano = sum(line.cost_nano_usd for line in stub.bill)
    assert await served.ledger_total() == billed_nano
    assert [row[2:] for row in await budget_rows(served)] == [(billed_nano, 0)]


async def test_a_kill_of_postgres_under_load_loses_no_hold_and_no_settlement(
    on_own: Served, own: OwnPostgres, stub: Stub
) -> None:
    await kills_under_load(on_own, own, stub, kills=2)


@pytest.mark.full
@pytest.mark.timeout(600)
async def test_twenty_kills_of_postgres_under_load_lose_no_hold_and_no_settlement(
    on_own: Served, own: OwnPostgres, stub: Stub
) -> None:
    await kills_under_load(on_own, own, stub, kills=20)


@asynccontextmanager
async def served_through_relay(
    settings: Settings, tmp_path: Path
) -> AsyncIterator[tuple[Served, Relay, httpx2.AsyncClient]]:
    """A gateway behind a relay to Postgres, warmed up so that only money statements pass it."""
    assert settings.database_url is not None
    async with relayed(settings.database_url.get_secret_value()) as relay:
        changed = make_settings(
            relay.url,
            tmp_path,
            OPENAI_BASE_URL=settings.openai_base_url,
            migration_database_url=settings.database_url,
            admission_timeout_ms=800,
            settle_wait_seconds=0.2,
        )
        async with served_gateway(changed) as served, served.http(await served.key()) as http:
            assert (await post_image(http)).status_code == 200
            yield served, relay, http
            await expect_agreeing_books(served)


async def test_a_hold_whose_acknowledgement_is_lost_is_voided_and_not_dispatched(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    async with served_through_relay(settings, tmp_path) as (served, relay, http):
        relay.mute_answers_to(b'"price_id"')  # which stands in nothing but a hold
        answer = await post_image(http)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "database_unavailable")
        relay.reset()
        await until_states(served, {"posted": 1, "void": 1})
        assert len(stub.calls) == 1


async def test_a_hold_that_commits_after_it_was_looked_for_is_voided_by_a_second_look(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    """The statement waits in Postgres, where no closed connection ends it."""
    async with (
        served_through_relay(settings, tmp_path) as (served, relay, http),
        owner_connections(settings, 2) as (other, watcher),
    ):
        await served.budget("1", window="total")
        assert (await post_image(http)).status_code == 200
        settled = await watcher.fetchval(LATEST_SETTLE)
        async with other.transaction():
            await other.execute("SELECT 1 FROM budget_period FOR UPDATE")
            relay.mute_answers_to(b'"price_id"')
            assert (await post_image(http)).status_code == 503
            while await watcher.fetchval(LATEST_SETTLE) in {settled, None}:  # noqa: ASYNC110
                await asyncio.sleep(0)  # Postgres tells no one
        await until_states(served, {"posted": 2, "held": 1})
        await until_states(served, {"posted": 2, "void": 1})
        assert len(stub.calls) == 2
        relay.reset()


async def test_a_settlement_whose_acknowledgement_is_lost_is_posted_once(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    async with served_through_relay(settings, tmp_path) as (served, relay, http):
        stub.faults.add(Fault(hold=True))
        asking = asyncio.create_task(post_image(http))
        await stub.until_held(1)
        relay.mute_answers()
        stub.release()
        answer = await asking
        assert answer.headers["x-gateway-cost-status"] == "pending"
        await until_states(served, {"posted": 2})
        relay.reset()
        assert (await post_image(http)).status_code in {200, 503}
        total = sum(line.cost_nano_usd for line in stub.bill)

        async def booked() -> bool:
            return await served.ledger_total() == total

        await eventually(booked)


async def test_a_keyed_edit_is_not_bought_while_its_key_cannot_be_looked_up(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    async with served_through_relay(settings, tmp_path) as (_, relay, http):

        async def edit(key: str) -> httpx2.Response:
            return await http.post(
                "/v1/images/edits",
                data={"model": GPT2, "prompt": "a red circle", "quality": "low"},
                files={"image": png(64, 64)},
                headers={"Idempotency-Key": key},
            )

        assert (await edit("one")).status_code == 200
        relay.mute_answers_to(b'"number"')  # which stands in nothing but a look-up of keys
        answer = await edit("two")
        relay.reset()
        assert (answer.status_code, error_of(answer)["code"]) == (503, "database_unavailable")
        assert len(stub.calls) == 2


async def test_a_silent_database_connection_stops_no_hold_and_no_settlement(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    """New connections work; no request may wait until TCP gives up the old ones."""
    async with served_through_relay(settings, tmp_path) as (served, relay, http):
        stub.faults.add(Fault(hold=True))
        asking = asyncio.create_task(post_image(http))
        await stub.until_held(1)
        relay.silence()
        stub.release()
        assert (await asking).status_code == 200

        async def admitted() -> bool:
            return (await post_image(http)).status_code == 200

        async def settled() -> bool:
            return (await count_states(served)).get("held", 0) == 0

        try:
            await eventually(admitted, 25)
            await eventually(settled, 25)
        finally:
            relay.reset()


async def test_a_key_that_is_not_cached_is_refused_quickly_while_its_lookup_gets_no_answer(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    async with served_through_relay(settings, tmp_path) as (served, relay, _):
        fresh = await served.key()
        relay.silence()
        try:
            async with client_of(served.base_url, fresh) as http:
                async with asyncio.timeout(5):
                    answer = await post_image(http)

                async def admitted() -> bool:
                    return (await post_image(http)).status_code == 200

                # On a new connection, although no answer comes on the old one.
                await eventually(admitted, 25)
        finally:
            relay.reset()
    assert (answer.status_code, error_of(answer)["code"]) == (503, "database_unavailable")
