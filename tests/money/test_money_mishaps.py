"""A fault at one call affects that call alone and never causes a second purchase.

Faults are planted in the database, where they would come from: a trigger that fails as Postgres
does, a price, a period.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import openai
import pytest
from structlog.testing import capture_logs

from gateway.billing import prices
from gateway.billing.quotes import cost
from gateway.billing.reservations import Reservations
from gateway.billing.reserving import ReservationRequest
from gateway.billing.settlement import Settlement
from gateway.domain import Caller, Price, Quote, new_id
from gateway.image_models import SeedPrice
from gateway.money import NanoUsd, format_usd
from gateway.provider_answers import Outcome, Usage
from gateway.providers.openai.answers import read_usage
from tests.harness import GPT2, Served
from tests.hosting_helpers import RESERVE, hold_request
from tests.money_helpers import (
    TERMS,
    age_unknown,
    books,
    budget_rows,
    count_states,
    post_image,
    quote_nano,
    terse_log,
    until_states,
)
from tests.stub_openai import Fault, Stub

HELD = """
SELECT b.tenant_id, coalesce(sum(p.held_nano), 0) AS held_nano
FROM budget b LEFT JOIN budget_period p ON p.tenant_id = b.tenant_id AND p.budget_id = b.id
GROUP BY 1
"""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with terse_log():
        yield


@asynccontextmanager
async def failing_updates(served: Served, sqlstate: str, times: int) -> AsyncIterator[None]:
    """The next `times` statements that resolve a reservation fail with this SQLSTATE."""
    await served.owner_sql("CREATE SEQUENCE mishap")
    await served.owner_sql(
        "CREATE FUNCTION mishap() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        f" IF nextval('public.mishap') <= {times} THEN"
        f" RAISE EXCEPTION 'planted' USING ERRCODE = '{sqlstate}'; END IF; RETURN NEW; END $$"
    )
    await served.owner_sql(
        "CREATE TRIGGER mishap BEFORE UPDATE ON reservation"
        " FOR EACH STATEMENT EXECUTE FUNCTION mishap()"
    )
    yield
    await served.owner_sql("DROP TRIGGER mishap ON reservation")


@pytest.mark.parametrize(
    "sqlstate",
    ["40P01", "40001", "55P03", "57014", "25006", "53100", "XX000"],
    ids=[
        "deadlock",
        "serialization",
        "lock timeout",
        "statement timeout",
        "read-only after a failover",
        "disk full",
        "internal error",
    ],
)
async def test_a_settlement_that_postgres_refuses_for_now_is_tried_until_it_is_acknowledged(
    sqlstate: str, served: Served, stub: Stub
) -> None:
    """The client retries what it may: were the paid answer lost, it would buy again."""
    client = served.openai(await served.key()).with_options(max_retries=2)
    async with client, failing_updates(served, sqlstate, 2):
        answer = await client.images.generate(
            model=GPT2, prompt="a red circle", size="1024x1024", quality="low"
        )
        assert len(stub.calls) == 1
        await until_states(served, {"posted": 1}, 10)
    assert answer.data is not None
    assert await served.ledger_total() == stub.bill[0].cost_nano_usd


async def test_a_paid_image_is_delivered_though_its_settlement_keeps_failing(
    served: Served, stub: Stub
) -> None:
    client = served.openai(await served.key()).with_options(max_retries=2)
    async with client, failing_updates(served, "XX000", 12):
        raw = await client.images.with_raw_response.generate(
            model=GPT2, prompt="a red circle", size="1024x1024", quality="low"
        )
        await until_states(served, {"posted": 1}, 20)
    assert raw.headers["x-gateway-cost-status"] in {"pending", "actual"}
    assert len(stub.calls) == 1


async def test_a_settlement_that_postgres_refuses_for_good_takes_no_image_away(
    served: Served, stub: Stub
) -> None:
    """A defect: the hold stays, and is posted as an estimate."""
    async with served.openai(await served.key()) as client:
        with capture_logs() as lines:
            async with failing_updates(served, "22003", 1):
                raw = await client.images.with_raw_response.generate(
                    model=GPT2, prompt="a red circle", size="1024x1024", quality="low"
                )
    assert raw.headers["x-gateway-cost-status"] == "pending"
    assert [line["kind"] for line in lines if line["event"] == "alarm"] == ["settle_refused"]
    images = raw.parse().data
    assert images is not None
    assert [bool(image.b64_json or image.url) for image in images] == [True]
    assert await count_states(served) == {"held": 1}
    await age_unknown(served)
    await served.sweep()
    [booked] = await books(served)
    assert booked.lines == (("post_est", booked.held_nano),)
    assert len(stub.calls) == 1


async def test_a_folder_that_cannot_be_written_costs_the_link_and_neither_image_nor_record(
    served: Served, stub: Stub
) -> None:
    images = served.gateway.settings.data_dir / "images"
    shutil.rmtree(images)
    images.write_bytes(b"a file where the folder was")
    async with served.openai(await served.key()).with_options(max_retries=2) as client:
        answer = await client.images.generate(
            model=GPT2, prompt="a red circle", size="1024x1024", quality="low"
        )
        assert answer.data is not None
        with pytest.raises(openai.InternalServerError) as caught:
            await client.images.generate(
                model=GPT2,
                prompt="a red circle",
                size="1024x1024",
                quality="low",
                response_format="url",
            )
    assert caught.value.code == "storage_failed"
    assert len(stub.calls) == 2
    assert await count_states(served) == {"posted": 2}
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in stub.bill)


async def make_free(served: Served, model: str) -> None:
    """Add a price version of zero, as an operator may."""
    async with served.gateway.database.operator() as session:
        await prices.add(
            session, model, SeedPrice(0, 0, 0, 0), effective_from=datetime(2026, 1, 1, tzinfo=UTC)
        )


async def test_a_model_with_price_zero_fails_no_other_call(served: Served, stub: Stub) -> None:
    await make_free(served, "gpt-image-2.5-flare")
    async with served.http(await served.key()) as http:
        answers = await asyncio.gather(
            *(post_image(http, model=GPT2 if i % 2 else "gpt-image-2.5-flare") for i in range(20))
        )
    assert {answer.status_code for answer in answers[1::2]} == {200}
    assert {answer.status_code for answer in answers[::2]} <= {200, 503}


def request(caller: Caller, quote: Quote) -> ReservationRequest:
    """A hold of this caller."""
    return ReservationRequest(
        new_id(), caller, quote, "generation", GPT2, GPT2, "openai", "house", 600
    )


async def current_price(served: Served) -> Price:
    """The price of the cheap model."""
    async with served.gateway.database.operator() as session:
        return next(p for p in await prices.list_prices(session) if p.model == GPT2)


async def test_each_tenant_of_a_shared_commit_is_held_to_its_own_budget(served: Served) -> None:
    tenants = sorted([await served.tenant(f"tenant {n}") for n in range(3)], key=str)
    for tenant_id, limit in zip(tenants, ("1", "0", "1"), strict=True):
        await served.budget(limit, tenant_id=tenant_id)
    price = await current_price(served)
    asked = [hold_request(tenant_id, price.id) for tenant_id in tenants]
    rows = await served.owner_sql(RESERVE, requests=json.dumps(asked), instance=str(new_id()))
    outcomes = {str(row.request_id): row.outcome for row in rows}
    assert [outcomes[one["id"]] for one in asked] == ["held", "budget_exceeded", "held"]
    held = {row.tenant_id: row.held_nano for row in await served.owner_sql(HELD)}
    assert held == dict(zip(tenants, (7_000_000, 0, 7_000_000), strict=True))


async def test_an_absurdly_large_usage_stops_no_other_settlement(
    served: Served,
) -> None:
    """A provider's number is whatever its JSON says."""
    key = await served.key()
    caller = Caller(served.tenant_id, None, key.id, True, frozenset(), None, None, "active")  # noqa: FBT003
    reservations = Reservations(
        served.gateway.database, instance=new_id(), max_batch=64, admission_timeout_ms=5000
    )
    price = await current_price(served)
    holds = [request(caller, Quote(price, NanoUsd(1_000_000), TERMS)) for _ in range(5)]
    await asyncio.gather(*(reservations.reserve(held) for held in holds))
    huge = read_usage({"input_tokens": 10**30, "output_tokens": 10**30})
    usages = [huge or Usage(10, 0, 0, 10), *[Usage(10, 0, 0, 10)] * 4]
    settling = [
        asyncio.create_task(
            reservations.settle(
                served.tenant_id,
                Settlement(held.id, Outcome.SUCCESS, cost(usage, price), 1, usage),
            )
        )
        for held, usage in zip(holds, usages, strict=True)
    ]
    await asyncio.wait(settling, timeout=10)
    for task in settling:
        task.cancel()
    await asyncio.wait(settling)
    await reservations.close()
    assert [b.state for b in await books(served)][1:] == ["posted"] * 4


async def test_a_budget_whose_next_period_was_made_a_moment_early_still_binds(
    served: Served, stub: Stub
) -> None:
    """Two admissions at midnight: the later one's transaction may begin first, or see the clock
    set back. The period that it must be charged to is then missing, and the next one exists.
    """
    async with served.http(await served.key()) as http:
        await served.budget(format_usd(await quote_nano(http) - 1), window="day")
        await served.owner_sql(
            "INSERT INTO budget_period (budget_id, tenant_id, period_start, period_end)"
            " SELECT id, tenant_id, now() + interval '1 minute', now() + interval '1 day'"
            " FROM budget"
        )
        answer = await post_image(http)
    assert answer.status_code == 402
    assert stub.calls == []


async def test_a_budget_lowered_below_what_is_spent_refuses_and_what_runs_is_settled(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault(hold=True))
    async with served.http(await served.key()) as http:
        await served.budget("1")
        running = asyncio.create_task(post_image(http))
        await stub.until_held(1)
        await served.budget("0")
        assert (await post_image(http)).status_code == 402
        stub.release()
        assert (await running).status_code == 200
    actual = stub.bill[0].cost_nano_usd
    assert await budget_rows(served) == [("tenant", 0, actual, 0)]
