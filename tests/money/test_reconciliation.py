"""An operator resolves open calls: with the real cost, the estimate, or as void."""

import asyncio
from typing import Any

import httpx2
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from gateway.billing import usage_sums
from gateway.billing.reconciliation import find_call
from gateway.errors import NotFound
from gateway.money import format_usd
from tests.admin_helpers import (
    NO_ID,
    JsonObject,
    Refusal,
    admin,
    answered,
    entries,
    every_page,
    operator_actor,
    refusal,
)
from tests.harness import Served, error_of
from tests.money_helpers import (
    GENERATIONS,
    Booked,
    age_unknown,
    books,
    budget_rows,
    image_body,
    make_late,
    post_image,
)
from tests.stub_openai import Fault, Stub

KEY = {"Idempotency-Key": "order-4711"}
REASON = "on the invoice of November"


async def unknown_call(
    served: Served, stub: Stub, *, estimated: bool = False, user: str | None = None
) -> str:
    """A call with an idempotency key whose outcome is not known; the id of its generation."""
    await served.budget("1")
    stub.faults.add(Fault("reset_after_headers"))
    async with served.http(await served.key(name="shop", user=user)) as http:
        answer = await http.post(GENERATIONS, json=image_body(), headers=KEY)
    assert answer.status_code == 504
    if estimated:
        await age_unknown(served)
        await served.sweep()
    async with admin(served) as http:
        state = "estimated" if estimated else "unknown"
        [call] = await every_page(http, "/reconciliation/calls", state=state)
    return str(call["id"])


async def resolve(
    served: Served, call_id: str, verdict: str, cost_usd: str | None = None, reason: str = REASON
) -> httpx2.Response:
    body: JsonObject = {"verdict": verdict, "reason": reason}
    body |= {} if cost_usd is None else {"cost_usd": cost_usd}
    async with admin(served) as http:
        return await http.post(f"/reconciliation/{call_id}/resolve", json=body)


async def test_an_estimate_corrected_downwards_stays_in_the_sums(
    served: Served, stub: Stub
) -> None:
    call_id = await unknown_call(served, stub, estimated=True)
    database = served.gateway.database
    await usage_sums.roll_up(database)
    answered(await resolve(served, call_id, "post", "0.0001"))
    await usage_sums.roll_up(database)
    async with database.operator() as session:
        assert await usage_sums.count_pending(session) == 0
        assert await usage_sums.differences(session) == []


async def again(served: Served, user: str | None = None) -> httpx2.Response:
    """The same request with the same key, once more."""
    async with served.http(await served.key(user=user)) as http:
        return await http.post(GENERATIONS, json=image_body(), headers=KEY)


async def open_metrics(served: Served, state: str) -> tuple[float, float, float]:
    """Number, amount in nano-USD and age in seconds of the open calls, after a sweep."""
    await served.sweep()
    found = [
        REGISTRY.get_sample_value(f"gateway_reservations_open{name}", {"state": state})
        for name in ("", "_nano_usd", "_age_seconds")
    ]
    assert None not in found
    return found[0] or 0.0, found[1] or 0.0, found[2] or 0.0


async def test_the_metrics_have_number_amount_and_age_of_open_calls_by_state(
    served: Served, stub: Stub
) -> None:
    call_id = await unknown_call(served, stub)
    [held] = [one.held_nano for one in await books(served)]
    count, amount, age = await open_metrics(served, "unknown")
    assert (count, amount) == (1, held)
    assert 0 <= age < 3600
    await age_unknown(served)
    count, amount, age = await open_metrics(served, "estimated")
    [estimate] = [one.final_nano for one in await books(served)]
    assert (count, amount) == (1, estimate)
    assert 7200 <= age < 10_800
    assert await open_metrics(served, "unknown") == (0, 0, 0)
    answered(await resolve(served, call_id, "post", "0.0042"))
    assert await open_metrics(served, "estimated") == (0, 0, 0)


async def test_the_metrics_of_open_calls_count_rehearsals_without_their_amount(
    served: Served,
) -> None:
    async with served.http(await served.key(livemode=False)) as http:
        assert (await post_image(http, "[sandbox:unknown]")).status_code == 504
    assert await open_metrics(served, "unknown") == (1, 0, 0)


@pytest.mark.parametrize("estimated", [False, True], ids=["unknown", "estimated"])
async def test_the_real_cost_is_posted_finally_with_its_reason(
    served: Served, stub: Stub, *, estimated: bool
) -> None:
    call_id = await unknown_call(served, stub, estimated=estimated, user="alice")
    [before] = await books(served)
    shown = answered(await resolve(served, call_id, "post", "0.0042"))
    assert (shown["api_key_name"], shown["user_name"]) == ("shop", "alice")
    truth = 4_200_000
    line = ("adjust", truth - (before.final_nano or 0)) if estimated else ("post", truth)
    hold = before.held_nano
    assert await books(served) == [Booked("posted", "resolved", hold, truth, (*before.lines, line))]
    assert [row[2:] for row in await budget_rows(served)] == [(truth, 0)]
    assert (shown["state"], shown["cost_usd"], shown["estimate_usd"]) == (
        "posted",
        "0.004200000",
        None,
    )
    kinds = ["hold", *(["post_est"] if estimated else []), line[0]]
    assert [one["kind"] for one in shown["lines"]] == kinds
    actor = await operator_actor(served)
    [resolution] = shown["resolutions"]
    assert resolution == {
        "at": resolution["at"],
        "actor": actor,
        "verdict": "post",
        "reason": REASON,
    }
    [entry] = await entries(served, action="call.resolved")
    assert (entry["actor"], entry["object_id"], entry["tenant_id"]) == (
        actor,
        call_id,
        str(served.tenant_id),
    )
    assert entry["after"] == {
        "state": "posted",
        "cost_usd": "0.004200000",
        "verdict": "post",
        "reason": REASON,
    }
    for verdict, cost in (("post", "0.0042"), ("void", None), ("accept", None)):
        answer = await resolve(served, call_id, verdict, cost)
        assert refusal(answer) == Refusal(409, "already_resolved", None)
    assert len(await entries(served, action="call.resolved")) == 1
    # The money is spent and the answer lost: the same key buys nothing, and is told so.
    replay = await again(served, "alice")
    assert (replay.status_code, error_of(replay)["code"]) == (504, "outcome_unknown")
    assert "0.004200000" in error_of(replay)["message"]
    assert replay.headers["x-should-retry"] == "false"
    assert len(stub.calls) == 1


@pytest.mark.parametrize("estimated", [False, True], ids=["unknown", "estimated"])
async def test_a_void_gives_money_and_key_back(
    served: Served, stub: Stub, *, estimated: bool
) -> None:
    call_id = await unknown_call(served, stub, estimated=estimated)
    [before] = await books(served)
    shown = answered(await resolve(served, call_id, "void"))
    assert (shown["state"], shown["cost_usd"]) == ("void", "0.000000000")
    line = ("adjust", -(before.final_nano or 0)) if estimated else ("void", 0)
    [booked] = await books(served)
    assert (booked.state, booked.lines) == ("void", (*before.lines, line))
    assert [row[2:] for row in await budget_rows(served)] == [(0, 0)]
    assert refusal(await resolve(served, call_id, "void")) == Refusal(409, "already_resolved", None)
    bought = await again(served)
    assert bought.status_code == 200
    assert len(stub.calls) == 2
    # It was billed after all.
    answered(await resolve(served, call_id, "post", "0.01"))
    cost = stub.bill[-1].cost_nano_usd
    assert [row[2:] for row in await budget_rows(served)] == [(10_000_000 + cost, 0)]
    assert refusal(await resolve(served, call_id, "void")) == Refusal(409, "already_resolved", None)


async def test_a_void_of_a_delivered_call_keeps_its_idempotency_key(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault("usage_missing"))
    first = await again(served)
    call_id = first.headers["x-gateway-generation-id"]
    answered(await resolve(served, call_id, "void"))
    replay = await again(served)
    assert replay.headers["idempotent-replayed"] == "true"
    assert replay.json()["data"] == first.json()["data"]
    assert len(stub.calls) == 1


@pytest.mark.parametrize("estimated", [False, True], ids=["unknown", "estimated"])
async def test_an_accepted_estimate_is_final(
    served: Served, stub: Stub, *, estimated: bool
) -> None:
    call_id = await unknown_call(served, stub, estimated=estimated)
    async with admin(served) as http:
        open_call = answered(await http.get(f"/reconciliation/{call_id}"))
    estimate = open_call["cost_usd"] if estimated else open_call["estimate_usd"]
    shown = answered(await resolve(served, call_id, "accept"))
    assert (shown["state"], shown["cost_usd"]) == ("posted", estimate)
    [booked] = await books(served)
    assert booked.lines[-1][0] == ("adjust" if estimated else "post")
    spent = sum(amount for _, amount in booked.lines)
    assert format_usd(spent) == estimate
    assert [row[2:] for row in await budget_rows(served)] == [(spent, 0)]


async def test_a_call_under_way_is_left_to_its_worker_until_its_time_is_over(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault(hold=True))
    async with served.http(await served.key()) as http, admin(served) as operator:
        await served.budget("1")
        calling = asyncio.create_task(post_image(http))
        await stub.until_held(1)
        [call] = await every_page(operator, "/reconciliation/calls", state="held")
        for verdict, cost in (("post", "0.1"), ("void", None), ("accept", None)):
            answer = await resolve(served, call["id"], verdict, cost)
            assert refusal(answer) == Refusal(409, "call_in_flight", None)
        await make_late(served)
        answered(await resolve(served, call["id"], "post", "0.1"))
        # The answer comes after all. The operator's word is final; the real cost is an alarm.
        with capture_logs() as lines:
            stub.release()
            assert (await calling).status_code == 200
    [alarm] = [line for line in lines if line.get("kind") == "settle_conflict"]
    assert (alarm["reservation"], alarm["nano"]) == (call["id"], stub.bill[0].cost_nano_usd)
    [booked] = await books(served)
    assert booked.lines == (("post", 100_000_000),)
    assert [row[2:] for row in await budget_rows(served)] == [(100_000_000, 0)]


async def late_answer(
    served: Served, stub: Stub, fault: Fault, *resolution: str
) -> httpx2.Response:
    """A call that an operator resolves after its deadline and that is answered later."""
    await served.budget("1")
    stub.faults.add(fault)
    async with served.http(await served.key()) as http:
        calling = asyncio.create_task(http.post(GENERATIONS, json=image_body(), headers=KEY))
        await stub.until_held(1)
        await make_late(served)
        async with admin(served) as operator:
            [call] = await every_page(operator, "/reconciliation/calls", state="held")
        answered(await resolve(served, call["id"], *resolution))
        stub.release()
        return await calling


async def test_images_that_come_after_an_operators_word_are_kept_under_their_key(
    served: Served, stub: Stub
) -> None:
    """The amount is the operator's; the difference is an alarm."""
    before = alarms("settle_conflict")
    first = await late_answer(served, stub, Fault(hold=True), "post", "0.1")
    replay = await again(served)
    assert (first.status_code, replay.status_code) == (200, 200)
    assert replay.headers["idempotent-replayed"] == "true"
    assert replay.json()["data"] == first.json()["data"]
    async with served.http(await served.key()) as http:
        assert len((await http.get("/v1/images")).json()["data"]) == 1
    [booked] = await books(served)
    assert (booked.outcome, booked.lines) == ("resolved", (("post", 100_000_000),))
    assert (len(stub.calls), alarms("settle_conflict") - before) == (1, 1)


async def test_a_void_call_that_turns_out_to_have_been_sent_is_an_alarm(
    served: Served, stub: Stub
) -> None:
    before = alarms("settle_conflict")
    fault = Fault("reset_after_headers", hold=True)
    assert (await late_answer(served, stub, fault, "void")).status_code == 504
    [booked] = await books(served)
    assert (booked.state, alarms("settle_conflict") - before) == ("void", 1)


def alarms(kind: str) -> float:
    return REGISTRY.get_sample_value("gateway_alarms_total", {"kind": kind}) or 0.0


async def test_of_concurrent_resolutions_of_one_call_one_succeeds(
    served: Served, stub: Stub
) -> None:
    call_id = await unknown_call(served, stub)
    answers = await asyncio.gather(
        *(resolve(served, call_id, "post", f"0.00{cost}") for cost in range(1, 9))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    [heard] = [answer.json()["cost_usd"] for answer in answers if answer.status_code == 200]
    [booked] = await books(served)
    assert format_usd(booked.final_nano or 0) == heard
    assert len(booked.lines) == 1
    assert len(await entries(served, action="call.resolved")) == 1


async def test_a_resolution_changes_the_budgets_of_its_call_alone(
    served: Served, stub: Stub
) -> None:
    other = await served.key()
    await served.budget("2", api_key_id=other.id)
    async with served.http(other) as http:
        await post_image(http)
    spent = stub.bill[0].cost_nano_usd
    call_id = await unknown_call(served, stub)
    answered(await resolve(served, call_id, "post", "0.000001"))
    rows = await budget_rows(served)
    assert {(owner, spent, held) for owner, _, spent, held in rows} == {
        ("key", spent, 0),
        ("tenant", 1_000, 0),
    }


@pytest.mark.parametrize("above_nano", [0, 1, 2_500_000_000])
async def test_a_cost_above_the_hold_is_booked_in_full_and_is_an_alarm(
    served: Served, stub: Stub, above_nano: int
) -> None:
    call_id = await unknown_call(served, stub)
    [open_call] = await books(served)
    cost = open_call.held_nano + above_nano
    with capture_logs() as lines:
        answered(await resolve(served, call_id, "post", format_usd(cost)))
    assert [row[2:] for row in await budget_rows(served)] == [(cost, 0)]
    alarms = [line["nano"] for line in lines if line.get("kind") == "bound_breach"]
    assert alarms == ([above_nano] if above_nano else [])


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Refusal(404, "not_found", "id")),
        ({"verdict": "refund"}, Refusal(400, "invalid_value", "verdict")),
        ({"verdict": "void"}, Refusal(400, "invalid_value", None)),
        ({"cost_usd": None}, Refusal(400, "invalid_value", None)),
        ({"cost_usd": "-1"}, Refusal(400, "invalid_value", "cost_usd")),
        ({"cost_usd": "0.0000000001"}, Refusal(400, "invalid_value", "cost_usd")),
        ({"reason": ""}, Refusal(400, "invalid_value", "reason")),
        ({"reason": " \t "}, Refusal(400, "invalid_value", "reason")),
        ({"reason": "x" * 501}, Refusal(400, "invalid_value", "reason")),
        ({"refund": True}, Refusal(400, "unknown_parameter", "refund")),
    ],
)
async def test_an_invalid_resolution_is_refused(
    unchanged: Served, changes: dict[str, Any], expected: Refusal
) -> None:
    body = {"verdict": "post", "cost_usd": "0.01", "reason": REASON} | changes
    async with admin(unchanged) as http:
        assert refusal(await http.post(f"/reconciliation/{NO_ID}/resolve", json=body)) == expected


@pytest.mark.asyncio(loop_scope="module")
async def test_a_call_that_is_not_there_is_not_shown(unchanged: Served) -> None:
    async with admin(unchanged) as http:
        answer = await http.get(f"/reconciliation/{NO_ID}")
    assert refusal(answer) == Refusal(404, "not_found", "id")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_part_of_an_id_that_no_call_has_finds_none(unchanged: Served) -> None:
    async with unchanged.gateway.database.operator() as session:
        with pytest.raises(NotFound) as refused:
            await find_call(session, "abcdef0123")
    assert refused.value.message.startswith("There is no call abcdef0123; only an open call")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("path", "owner"), [("", "The operator"), ("/tenants/{}", "This tenant")])
async def test_a_budget_that_is_not_there_is_missed_by_its_owner(
    unchanged: Served, path: str, owner: str
) -> None:
    async with admin(unchanged) as http:
        answer = await http.delete(f"{path.format(unchanged.tenant_id)}/budgets/4711")
    assert (answer.status_code, error_of(answer)["message"]) == (
        404,
        f"{owner} has no budget 4711.",
    )
