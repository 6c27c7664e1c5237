"""The real cost of a call: missing or incomplete usage, and corrections of an estimate."""

import asyncio

import pytest

from tests.admin_helpers import admin
from tests.harness import GPT2, Served
from tests.money_helpers import (
    age_unknown,
    books,
    make_late,
    post_image,
    quote_nano,
    until_states,
)
from tests.stub_openai import Fault, Stub


async def test_an_answer_without_usage_is_posted_as_an_estimate_and_says_so(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault("usage_missing"))
    async with served.http(await served.key()) as http:
        quote = await quote_nano(http)
        answer = await post_image(http)
    assert answer.status_code == 200
    assert answer.headers["x-gateway-cost-status"] == "estimated"
    [booked] = await books(served)
    assert (booked.state, booked.outcome) == ("posted_est", "success_no_usage")
    assert booked.lines == (("post_est", quote),)
    assert quote >= stub.bill[0].cost_nano_usd


async def test_by_a_price_per_image_an_answer_without_usage_is_billed_exactly(
    served: Served, stub: Stub
) -> None:
    await served.owner_sql(
        "INSERT INTO price (model, effective_from, text_input_nano, image_input_nano,"
        " image_output_nano, text_output_nano, per_image_nano)"
        " VALUES (:model, now() - interval '1 minute', 0, 0, 0, 0, 5000000)",
        model=GPT2,
    )
    stub.faults.add(Fault("usage_missing"))
    async with served.http(await served.key()) as http:
        answer = await post_image(http)
        await served.gateway.request_log.flush()
        request = (await http.get(f"/v1/requests/{answer.headers['x-request-id']}")).json()
    assert (answer.status_code, answer.headers["x-gateway-cost-status"]) == (200, "actual")
    [booked] = await books(served)
    assert (booked.outcome, booked.lines) == ("success", (("post", 5_000_000),))
    assert [call["outcome"] for call in request["generation"]["calls"]] == ["success"]


async def test_usage_without_details_is_still_exact(served: Served, stub: Stub) -> None:
    stub.faults.add(Fault("usage_without_details"))
    async with served.http(await served.key()) as http:
        answer = await post_image(http)
    assert answer.headers["x-gateway-cost-status"] == "actual"
    [booked] = await books(served)
    assert booked.lines == (("post", stub.bill[0].cost_nano_usd),)


@pytest.mark.parametrize("estimated", [False, True], ids=["unknown", "estimated"])
async def test_an_answer_after_the_deadline_still_settles_with_the_real_cost(
    served: Served, stub: Stub, *, estimated: bool
) -> None:
    stub.faults.add(Fault(hold=True))
    async with served.http(await served.key()) as http:
        await served.budget("1")
        waiting = asyncio.create_task(post_image(http))
        await stub.until_held(1)
        await (age_unknown if estimated else make_late)(served)
        await served.sweep()
        [booked] = await books(served)
        assert booked.state == ("posted_est" if estimated else "unknown")
        stub.release()
        answer = await waiting
    assert answer.headers["x-gateway-cost-status"] == "actual"
    actual = stub.bill[0].cost_nano_usd
    [booked] = await books(served)
    assert (booked.state, booked.final_nano) == ("posted", actual)
    hold = booked.held_nano
    truth = (("post_est", hold), ("adjust", actual - hold)) if estimated else (("post", actual),)
    assert booked.lines == truth
    [image] = await served.owner_sql("SELECT count(*) FROM image")
    assert image[0] == 1


async def test_an_answer_without_usage_after_its_estimate_still_has_its_images_on_record(
    served: Served, stub: Stub
) -> None:
    async with served.http(await served.key()) as http:
        # Another call's image is not this one's.
        assert (await post_image(http)).status_code == 200
        stub.faults.add(Fault("usage_missing", hold=True))
        waiting = asyncio.create_task(post_image(http))
        await stub.until_held(1)
        await age_unknown(served)
        await served.sweep()
        stub.release()
        assert (await waiting).status_code == 200
    await until_states(served, {"posted": 1, "posted_est": 1})
    [counted] = await served.owner_sql(
        "SELECT (SELECT count(*) FROM image), (SELECT sum(images) FROM ledger)"
    )
    assert tuple(counted) == (2, 2)


async def test_a_price_that_changes_during_a_call_does_not_change_its_cost(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault(hold=True))
    async with served.http(await served.key()) as http, admin(served) as operator:
        waiting = asyncio.create_task(post_image(http))
        await stub.until_held(1)
        rates = {"text_input": "50", "image_input": "80", "image_output": "280"}
        added = await operator.post("/prices", json={"model": GPT2, **rates})
        assert added.status_code == 201
        stub.release()
        assert (await waiting).status_code == 200
    [booked] = await books(served)
    assert booked.lines == (("post", stub.bill[0].cost_nano_usd),)
