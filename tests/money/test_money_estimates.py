"""A call of unknown outcome is estimated by its model's usual size, not by the most expensive."""

import asyncio
from typing import Any

import pytest

from gateway.billing.estimates import USUAL, usual_choice
from gateway.billing.sweeping import SweptReservations, sweep
from gateway.image_models import AutoChoice
from gateway.money import parse_usd
from tests.harness import GPT2, Served
from tests.money_helpers import GENERATIONS, age_unknown, books, image_body, make_late, post_image
from tests.stub_openai import Fault, Stub


def left_open(**named: str) -> dict[str, object]:
    """The cheap request without a quality and a size, except those that are named."""
    body = image_body()
    return {name: body[name] for name in ("model", "prompt")} | named


async def lost_call(served: Served, stub: Stub, **named: str) -> tuple[int, int]:
    """Hold and estimate of a call whose outcome is unknown, of open quality and size."""
    stub.faults.add(Fault("reset_after_headers"))
    async with served.http(await served.key()) as http:
        assert (await http.post(GENERATIONS, json=left_open(**named))).status_code == 504
    await age_unknown(served)
    await served.sweep()
    [booked] = [one for one in await books(served) if one.outcome == "estimated"]
    assert booked.final_nano is not None
    return booked.held_nano, booked.final_nano


async def settle_calls(served: Served, number: int, **changes: Any) -> None:
    async with served.http(await served.key()) as http:
        answers = await asyncio.gather(*(post_image(http, **changes) for _ in range(number)))
    assert {answer.status_code for answer in answers} == {200}


async def bound(served: Served, quality: str, size: str) -> int:
    """The quote for the same prompt with these named."""
    async with served.http(await served.key()) as http:
        body = image_body(quality=quality, size=size)
        answer = await http.post("/v1/images/quotes", json=body)
    return parse_usd(answer.json()["cost_usd_max"])


async def test_a_sweep_tells_how_many_calls_it_estimated(served: Served, stub: Stub) -> None:
    for _ in range(2):
        stub.faults.add(Fault("reset_after_headers"))
        async with served.http(await served.key()) as http:
            assert (await post_image(http)).status_code == 504
    database, models = served.gateway.database, served.gateway.core.catalog.models
    await make_late(served)
    too_early = await sweep(database, models, estimate_after_seconds=3600)
    await age_unknown(served)
    swept = [await sweep(database, models, estimate_after_seconds=3600) for _ in range(2)]
    assert [too_early, *swept] == [
        SweptReservations(expired=0, estimated=0),
        SweptReservations(expired=0, estimated=2),
        SweptReservations(expired=0, estimated=0),
    ]


async def test_an_open_quality_and_size_are_estimated_as_most_frequent(
    served: Served, stub: Stub
) -> None:
    await settle_calls(served, 6, quality="low", size="1024x1536")
    await settle_calls(served, 4, quality="medium", size="1024x1024")
    held, estimated = await lost_call(served, stub)
    assert estimated == await bound(served, "low", "1024x1536")
    assert held > 10 * estimated


async def test_with_fewer_than_ten_calls_the_catalogue_says_the_usual(
    served: Served, stub: Stub
) -> None:
    await settle_calls(served, 9)
    _, estimated = await lost_call(served, stub)
    assert estimated == await bound(served, "medium", "1024x1024")


@pytest.mark.parametrize(
    ("named", "quality", "size"),
    [
        ({"quality": "high"}, "high", "1024x1024"),
        ({"size": "1024x1536"}, "low", "1024x1536"),
        ({"quality": "auto", "size": "1024x1536"}, "low", "1024x1536"),
        ({"quality": "medium", "size": "auto"}, "medium", "1024x1024"),
    ],
)
async def test_a_named_quality_or_size_is_estimated_as_named(
    served: Served, stub: Stub, named: dict[str, str], quality: str, size: str
) -> None:
    await settle_calls(served, 10)
    held, estimated = await lost_call(served, stub, **named)
    assert estimated == await bound(served, quality, size)
    assert estimated < held


@pytest.mark.parametrize("missing", ["model", "terms"])
async def test_a_call_that_can_no_longer_be_estimated_costs_its_hold(
    served: Served, stub: Stub, missing: str
) -> None:
    """Its model has left the catalogue, or it is older than the record of what its cost was of."""
    stub.faults.add(Fault("reset_after_headers"))
    async with served.http(await served.key()) as http:
        assert (await http.post(GENERATIONS, json=left_open())).status_code == 504
    await age_unknown(served)
    models = served.gateway.core.catalog.models
    if missing == "model":
        models = {name: model for name, model in models.items() if name != GPT2}
    else:
        await served.owner_sql("UPDATE reservation SET terms = NULL")
    swept = await sweep(served.gateway.database, models, estimate_after_seconds=60)
    assert swept == SweptReservations(expired=0, estimated=1)
    [booked] = await books(served)
    assert (booked.state, booked.final_nano) == ("posted_est", booked.held_nano)


async def test_only_calls_of_the_same_mode_and_operation_count(served: Served, stub: Stub) -> None:
    async with served.http(await served.key(livemode=False)) as http:
        for _ in range(12):
            assert (await post_image(http)).status_code == 200
    model = served.gateway.core.catalog.models[GPT2]
    async with served.gateway.database.operator() as session:
        found = {
            (operation, livemode): await usual_choice(session, model, operation, livemode=livemode)
            for operation in ("generation", "edit")
            for livemode in (True, False)
        }
    assert found == {
        ("generation", False): AutoChoice("low", "1024x1024"),
        ("generation", True): model.usual,
        ("edit", False): model.usual,
        ("edit", True): model.usual,
    }


async def test_an_answer_without_usage_is_estimated_by_the_size_that_it_names(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault("usage_missing"))
    async with served.http(await served.key()) as http:
        answer = await http.post(GENERATIONS, json=left_open())
    assert answer.status_code == 200
    [booked] = await books(served)
    served_as = answer.json()
    assert booked.final_nano == await bound(served, served_as["quality"], served_as["size"])
    assert booked.state == "posted_est"


MANY = """
INSERT INTO reservation (id, tenant_id, livemode, periods, operation, requested_model,
    served_model, provider, credential, price_id, held_nano, state, final_nano, instance,
    admitted_at, deadline_at, served_quality, served_size)
SELECT (left(id::text, 24) || lpad(to_hex(n), 12, '0'))::uuid,
    tenant_id, true, '{}', 'generation', served_model, CASE n % 2 WHEN 0 THEN
    served_model ELSE 'other-' || n % 7 END, provider, credential, price_id, 1, 'posted', 1,
    instance, now(), now(), 'low', '1024x1024'
FROM reservation, generate_series(1, 20000) AS n
"""


async def test_the_usual_is_found_without_reading_every_call(served: Served, stub: Stub) -> None:
    """The query reads as many index entries as it counts, and no others."""
    await settle_calls(served, 1)
    await served.owner_sql(MANY)
    await served.owner_sql("ANALYZE reservation")
    plan = await served.owner_sql(
        f"EXPLAIN (ANALYZE, FORMAT JSON) {USUAL.text}",
        model=GPT2,
        operation="generation",
        livemode=True,
    )
    node = plan[0][0][0]["Plan"]
    while "Plans" in node:
        [node] = node["Plans"]
    assert (node["Index Name"], node["Actual Rows"]) == ("reservation_served", 1000)
    await served.owner_sql("DELETE FROM reservation WHERE final_nano = 1")


@pytest.mark.parametrize("quality", ["auto", "low"])
async def test_the_hold_stays_the_dearest(served: Served, quality: str) -> None:
    dearest = await bound(served, "high", "auto")
    assert (await bound(served, quality, "auto") == dearest) == (quality == "auto")
