"""Details that no other test covers: rounding upwards, one resolution, a claim's route."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil
from typing import Any

import orjson
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.billing import ledger, prices
from gateway.billing.reserving import budget_refusal
from gateway.db.addresses import create_engine, database_url
from gateway.image_models import SeedPrice
from tests.harness import GPT2, Served, error_of
from tests.hosting_helpers import reserve_together
from tests.money_helpers import GENERATIONS, books, budget_rows, post_image
from tests.stub_openai import Fault, Stub

RATES = SeedPrice(
    text_input_nano=333_333, image_input_nano=7, text_output_nano=0, image_output_nano=1_000_001
)
"""Of no component does the cost of a call come out in whole nano-dollars."""
A_MINUTE = timedelta(minutes=1)
LOCK_WAITS = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND wait_event_type = 'Lock' AND query LIKE '%settle%'"
)


async def test_no_column_of_any_table_is_a_float(served: Served) -> None:
    rows = await served.owner_sql(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema ="
        " 'public' AND data_type IN ('real', 'double precision', 'money')"
    )
    assert rows == []


async def test_every_amount_of_money_is_a_bigint(served: Served) -> None:
    rows = await served.owner_sql(
        "SELECT DISTINCT data_type FROM information_schema.columns WHERE table_schema = 'public'"
        " AND column_name LIKE '%nano'"
    )
    assert [row[0] for row in rows] == ["bigint"]


async def test_each_component_of_a_cost_is_rounded_up_once(served: Served, stub: Stub) -> None:
    async with served.gateway.database.operator() as session:
        await prices.add(session, GPT2, RATES, effective_from=datetime.now(UTC) - A_MINUTE)
    async with served.http(await served.key()) as http:
        answer = await post_image(http, "a circle of seven words and a half")
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    components = [
        Fraction(usage["input_tokens"] * RATES.text_input_nano, 1_000_000),
        Fraction(usage["output_tokens"] * RATES.image_output_nano, 1_000_000),
    ]
    assert all(component.denominator > 1 for component in components)
    [booked] = await books(served)
    assert booked.lines == (("post", sum(map(ceil, components))),)


async def test_two_settlements_of_one_call_at_once_resolve_it_once(
    served: Served, stub: Stub
) -> None:
    # Without a budget: the lock of a budget's row would keep the second one waiting as well.
    stub.faults.add(Fault("close_before_billing"))
    async with served.http(await served.key()) as http:
        assert (await post_image(http)).status_code == 504
    [row] = await served.owner_sql("SELECT tenant_id, id FROM reservation")
    async with _connection(served) as first, _connection(served) as second:
        await first.begin()
        assert await _settle(first, row, kind="post", amount_nano=500) == "ok"
        late = asyncio.create_task(_settle(second, row, kind="post_est", amount_nano=900))
        await _until_it_waits(served, late)
        await first.commit()
        assert await late == "already"
        await second.commit()
    [booked] = await books(served)
    assert (booked.state, booked.final_nano) == ("posted", 500)
    assert booked.lines == (("post", 500),)


async def test_an_estimate_reported_again_with_its_images_changes_nothing(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault("usage_missing"))
    async with served.http(await served.key()) as http:
        assert (await post_image(http)).status_code == 200
    [call] = await served.owner_sql("SELECT tenant_id, id, final_nano FROM reservation")
    again = {"id": "img_again", "path": "again", "media_type": "image/png", "size_bytes": 1}
    again |= {"prompt_hash": "00", "ttl_seconds": 60}
    async with _connection(served) as connection, connection.begin():
        repeated = {"kind": "post_est", "amount_nano": call.final_nano, "stored": [again]}
        assert await _settle(connection, call, **repeated) == "already"
    [stored] = await served.owner_sql("SELECT count(*) FROM image")
    assert stored[0] == 1


async def test_the_smallest_amount_that_was_held_is_given_back(served: Served) -> None:
    await served.budget("1")
    await reserve_together(served, {"amount_nano": 1})
    assert [row[3] for row in await budget_rows(served)] == [1]
    [call] = await served.owner_sql("SELECT tenant_id, id FROM reservation")
    async with _connection(served) as connection, connection.begin():
        assert await _settle(connection, call, kind="void", amount_nano=0, images=0) == "ok"
    assert [row[3] for row in await budget_rows(served)] == [0]


async def test_one_key_on_two_routes_of_one_operation_is_two_requests(
    served: Served, stub: Stub
) -> None:
    body, key = {"prompt": "a fox"}, {"Idempotency-Key": "order-4711"}
    async with served.http(await served.key()) as http:
        first = await http.post(GENERATIONS, json=body, headers=key)
        other = await http.post("/generate_image", json=body, headers=key)
    assert first.status_code == 200
    assert (other.status_code, error_of(other)["code"]) == (422, "idempotency_conflict")
    assert len(stub.calls) == 1


async def test_old_keys_are_forgotten_in_as_many_batches_as_it_takes(
    served: Served, stub: Stub
) -> None:
    async with served.http(await served.key()) as http:
        for number in range(3):
            key = {"Idempotency-Key": f"order-{number}"}
            answer = await http.post(GENERATIONS, json={"prompt": "a fox"}, headers=key)
            assert answer.status_code == 200
    await served.owner_sql(
        "UPDATE idempotency_claim SET claimed_at = claimed_at - interval '25 hours'"
    )
    database = served.gateway.database
    assert await ledger.forget_claims(database, after_seconds=86_400, limit=2) == 3
    [left] = await served.owner_sql("SELECT count(*) FROM idempotency_claim")
    assert left[0] == 0


def test_a_refusal_by_a_budget_tells_the_time_until_its_reset() -> None:
    now = datetime.now(UTC)
    waits = [
        budget_refusal(
            "tenant", "day", limit_nano=1, available_nano=0, resets_at=resets_at
        ).retry_after_seconds
        for resets_at in (now + timedelta(days=1), now, None)
    ]
    # Of a reset that is just now, still one second: a client must not ask again without a pause.
    assert waits in ([86_399, 1, None], [86_400, 1, None])


@asynccontextmanager
async def _connection(served: Served) -> AsyncIterator[AsyncConnection]:
    url = served.gateway.settings.database_url
    assert url is not None
    engine = create_engine(database_url(url.get_secret_value()), role=None)
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


async def _settle(connection: AsyncConnection, call: Row[Any], **fields: object) -> str:
    owned = {"tenant_id": str(call.tenant_id), "id": str(call.id)}
    settlement = {**owned, "outcome": "success", "images": 1, **fields}
    rows = await connection.execute(
        text("SELECT result FROM settle(CAST(:settlements AS jsonb))"),
        {"settlements": orjson.dumps([settlement]).decode()},
    )
    return str(rows.scalar_one())


async def _until_it_waits(served: Served, late: asyncio.Task[str]) -> None:
    """Return once Postgres says that the second settlement waits for the first one's lock."""
    async with _connection(served) as watcher, asyncio.timeout(30):
        while not (await watcher.execute(LOCK_WAITS)).scalar_one():
            assert not late.done(), "it did not wait"
            await watcher.rollback()
