"""Budgets that warn once at each threshold, that only warn, and that are raised for a time."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.money import format_usd
from tests.admin_helpers import (
    GENERATIONS,
    LOW,
    NO_ID,
    admin,
    answered,
    created,
    entries,
    refusal,
)
from tests.harness import Served, error_of
from tests.hosting_helpers import reserve_together
from tests.money_helpers import budget_rows, post_image, quote_nano
from tests.stub_openai import Fault, Stub


def soon() -> str:
    return (datetime.now(UTC) + timedelta(hours=1)).isoformat()


async def events(served: Served) -> list[dict[str, Any]]:
    """The events for tenants, oldest first."""
    rows = await served.owner_sql(
        "SELECT tenant_id, livemode, type, data FROM event ORDER BY created_at"
    )
    assert {row.tenant_id for row in rows} <= {served.tenant_id}
    return [{"type": row.type, "livemode": row.livemode, **row.data} for row in rows]


async def set_budget(served: Served, **body: object) -> dict[str, Any]:
    async with admin(served) as http:
        answer = await http.put(
            f"/tenants/{served.tenant_id}/budgets", json={"window": "month", **body}
        )
    assert answer.status_code in {200, 201}, answer.text
    budget: dict[str, Any] = answer.json()
    return budget


async def cost_nano(served: Served, stub: Stub) -> int:
    """The cost of the cheap call; every equal call costs the same."""
    async with served.http(await served.key()) as http:
        assert (await post_image(http)).status_code == 200
    return stub.bill[-1].cost_nano_usd


async def test_a_budget_warns_once_at_each_of_its_thresholds(served: Served, stub: Stub) -> None:
    cost = await cost_nano(served, stub)
    budget = await set_budget(served, limit_usd=format_usd(10 * cost), enforcement="soft")
    reached = []
    async with served.http(await served.key()) as http:
        for _ in range(12):
            assert (await post_image(http)).status_code == 200
            reached.append([event["threshold_percent"] for event in await events(served)])
    assert reached == [[]] * 4 + [[50]] * 3 + [[50, 80]] * 2 + [[50, 80, 100]] * 3
    assert (await events(served))[1] == {
        "type": "budget.threshold_reached",
        "livemode": True,
        "threshold_percent": 80,
        "budget_id": budget["id"],
        "owner": "tenant",
        "api_key_id": None,
        "user_id": None,
        "window": "month",
        "enforcement": "soft",
        "limit_usd": format_usd(10 * cost),
        "spent_usd": format_usd(8 * cost),
        "held_usd": "0.000000000",
        "period_start": (await events(served))[1]["period_start"],
        "resets_at": (await events(served))[1]["resets_at"],
    }


async def test_a_jump_over_several_thresholds_warns_of_each(served: Served, stub: Stub) -> None:
    cost = await cost_nano(served, stub)
    key = await served.key(user="ann")
    percents = [100, *range(1, 9), 99]  # as many as there may be
    await set_budget(served, limit_usd=format_usd(cost), enforcement="soft", alert_percents=[])
    await set_budget(
        served,
        limit_usd=format_usd(cost),
        window="day",
        enforcement="soft",
        api_key_id=str(key.id),
        alert_percents=percents,
    )
    async with served.http(key) as http:
        assert (await post_image(http)).status_code == 200
    told = await events(served)
    assert [event["threshold_percent"] for event in told] == sorted(percents)
    assert {(event["owner"], event["api_key_id"]) for event in told} == {("key", str(key.id))}


async def test_thresholds_are_crossed_once_however_many_calls_settle_at_once(
    served: Served, stub: Stub
) -> None:
    cost = await cost_nano(served, stub)
    await set_budget(served, limit_usd=format_usd(20 * cost), enforcement="soft")
    stub.faults.add(Fault(hold=True, times=None))
    async with served.http(await served.key()) as http:
        waiting = [asyncio.create_task(post_image(http)) for _ in range(30)]
        await stub.until_held(30)
        stub.release()
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}
    told = [(event["type"], event.get("threshold_percent")) for event in await events(served)]
    assert told == [("budget.threshold_reached", percent) for percent in (50, 80, 100)]


async def test_the_first_refusal_of_a_period_is_told_and_no_other(
    served: Served, stub: Stub
) -> None:
    await set_budget(served, limit_usd="0", window="total")
    key = await served.key()
    async with served.http(key) as http:
        answers = await asyncio.gather(*(post_image(http) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {402}
    [event] = await events(served)
    assert event == {
        "type": "budget.exceeded",
        "livemode": True,
        "budget_id": event["budget_id"],
        "owner": "tenant",
        "api_key_id": None,
        "user_id": None,
        "window": "total",
        "enforcement": "hard",
        "limit_usd": "0.000000000",
        "spent_usd": "0.000000000",
        "held_usd": "0.000000000",
        "period_start": None,
        "resets_at": None,
    }
    assert stub.calls == []


@pytest.mark.parametrize("owner", ["tenant", "user", "key"])
async def test_a_refusal_names_the_owner_of_the_short_budget(served: Served, owner: str) -> None:
    key = await served.key(user="ann")
    [user] = await served.owner_sql("SELECT id FROM tenant_user")
    owners = {"tenant": {}, "user": {"user_id": str(user.id)}, "key": {"api_key_id": str(key.id)}}
    await set_budget(served, limit_usd="0", **owners[owner])
    async with served.http(key) as http:
        refused = await post_image(http)
    assert refused.status_code == 402
    assert error_of(refused)["message"].startswith(
        f"The {owner}'s budget per month of 0.00 USD has 0.00 USD left, less than this call can "
        "cost at most. It resets at "
    )


async def test_a_higher_limit_is_warned_of_anew(served: Served, stub: Stub) -> None:
    cost = await cost_nano(served, stub)
    told = []
    async with served.http(await served.key()) as http:
        for limit in (cost, cost // 2, 2 * cost):
            await set_budget(served, limit_usd=format_usd(limit), window="total")
            await set_budget(
                served, limit_usd=format_usd(limit), window="total", enforcement="soft"
            )
            assert (await post_image(http)).status_code == 200
            await set_budget(
                served, limit_usd=format_usd(limit), window="total", enforcement="hard"
            )
            assert (await post_image(http)).status_code == 402
            found = await events(served)
            told.append([event.get("threshold_percent", "exceeded") for event in found])
    first = [50, 80, 100, "exceeded"]
    assert told == [first, first, first + first]


async def test_a_limit_that_was_raised_and_is_lowered_again_warns_again(
    served: Served, stub: Stub
) -> None:
    cost = await cost_nano(served, stub)
    told = []
    async with served.http(await served.key()) as http:
        for limit in (50 * cost, 1_000 * cost, 50 * cost):
            await set_budget(
                served, limit_usd=format_usd(limit), window="total", alert_percents=[1]
            )
            assert (await post_image(http)).status_code == 200
            told.append([event["threshold_percent"] for event in await events(served)])
    assert told == [[1], [1], [1, 1]]


async def test_a_soft_budget_refuses_nothing_and_counts_for_when_it_is_hard(
    served: Served,
) -> None:
    async with served.http(await served.key()) as http:
        quote = await quote_nano(http)
        await set_budget(served, limit_usd=format_usd(quote // 2), enforcement="soft")
        for _ in range(3):
            assert (await post_image(http)).status_code == 200
        [budget] = (await http.get("/v1/budgets")).json()["data"]
        assert (budget["enforcement"], budget["remaining_usd"]) == ("soft", "0.000000000")
        await set_budget(served, limit_usd=format_usd(quote // 2), enforcement="hard")
        assert refusal(await post_image(http)).code == "budget_exceeded"
        # Spending beyond it while it was soft breaks no invariant.
        await served.check_invariants()


async def test_a_raise_admits_more_until_it_ends(served: Served) -> None:
    path = f"/tenants/{served.tenant_id}/budgets"
    async with served.http(await served.key()) as http, admin(served) as operator:
        quote = await quote_nano(http)
        budget = await set_budget(served, limit_usd=format_usd(quote - 1), window="total")
        raising = {"limit_usd": format_usd(3 * quote), "until": soon()}
        assert (await post_image(http)).status_code == 402
        raised = answered(await operator.put(f"{path}/{budget['id']}/raise", json=raising))
        assert raised == budget | {
            "raise": {"limit_usd": raised["raise"]["limit_usd"], "until": raised["raise"]["until"]},
            "remaining_usd": format_usd(3 * quote),
        }
        assert (await post_image(http)).status_code == 200
        # As if its time had come.
        [last] = await served.owner_sql(
            "SELECT limit_at(limit_nano, raised_to_nano, raised_until, raised_until) = limit_nano"
            " AS is_usual FROM budget"
        )
        assert last.is_usual
        await served.owner_sql("UPDATE budget SET raised_until = clock_timestamp()")
        assert (await post_image(http)).status_code == 402
        [shown] = answered(await operator.get(path))["data"]
        assert shown["raise"] is None
        answered(await operator.put(f"{path}/{budget['id']}/raise", json=raising))
        answered(await operator.delete(f"{path}/{budget['id']}/raise"))
        assert (await post_image(http)).status_code == 402


async def test_the_budget_that_is_exceeded_is_told_of_alone(served: Served) -> None:
    key, other = await served.key(), await served.tenant("other")
    await served.budget("0.0001")
    await served.budget("5", window="day")
    await served.budget("5", api_key_id=key.id)
    await served.budget("0.0001", tenant_id=other)
    async with served.http(key) as http:
        for _ in range(2):
            assert refusal(await post_image(http)).code == "budget_exceeded"
    [told] = await events(served)
    assert (told["type"], told["owner"], told["window"]) == ("budget.exceeded", "tenant", "month")


async def test_raises_are_in_the_audit_trail(served: Served) -> None:
    path = f"/tenants/{served.tenant_id}/budgets"
    until = soon()
    budget = await set_budget(served, limit_usd="5")
    async with admin(served) as http:
        raising = {"limit_usd": "8", "until": until}
        answered(await http.put(f"{path}/{budget['id']}/raise", json=raising))
        answered(await http.delete(f"{path}/{budget['id']}/raise"))
        answered(await http.delete(f"{path}/{budget['id']}/raise"))
    told = [
        (entry["action"], (entry["before"] or {}).get("raise"), (entry["after"] or {}).get("raise"))
        for entry in (await entries(served, tenant=str(served.tenant_id)))[1:]
    ]
    raised = {"limit_usd": "8.00", "until": until}
    assert told == [
        ("budget.created", None, None),
        ("budget.updated", None, raised),
        ("budget.updated", raised, None),
    ]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"limit_usd": "8"},
        {"limit_usd": "5.00", "until": "soon"},
        {"limit_usd": "4", "until": "soon"},
        {"limit_usd": "1000000001", "until": "soon"},
        {"limit_usd": "8", "until": "2020-01-01T00:00:00Z"},
        {"limit_usd": "8", "until": "2126-01-01T00:00:00Z"},
        {"limit_usd": "8", "until": "2026-12-01T00:00:00"},
        {"limit_usd": "8", "until": "9999-12-31T23:59:59-12:00"},
        {"limit_usd": "8", "until": "soon", "window": "day"},
    ],
)
async def test_an_invalid_raise_is_refused(served: Served, body: dict[str, str]) -> None:
    budget = await set_budget(served, limit_usd="5")
    body = {name: soon() if value == "soon" else value for name, value in body.items()}
    path = f"/tenants/{served.tenant_id}/budgets"
    async with admin(served) as http:
        refused = refusal(await http.put(f"{path}/{budget['id']}/raise", json=body))
        assert refused.status == 400
        assert answered(await http.get(path))["data"] == [budget]


async def test_another_tenants_budget_is_not_raised(served: Served) -> None:
    budget = await set_budget(served, limit_usd="5")
    other = await served.tenant("other")
    raising = {"limit_usd": "8", "until": soon()}
    async with admin(served) as http:
        for tenant in (other, NO_ID):
            path = f"/tenants/{tenant}/budgets/{budget['id']}"
            assert refusal(await http.put(f"{path}/raise", json=raising)).code == "not_found"
            assert refusal(await http.delete(f"{path}/raise")).code == "not_found"
        assert refusal(await http.delete(f"/budgets/{budget['id']}")).code == "not_found"


async def test_omitted_fields_of_a_budget_stay_unchanged(served: Served) -> None:
    await set_budget(served, limit_usd="5", enforcement="soft", alert_percents=[75])
    changed = await set_budget(served, limit_usd="6")
    assert (changed["enforcement"], changed["alert_percents"]) == ("soft", [75])
    async with admin(served) as http:
        path = f"/tenants/{served.tenant_id}/budgets"
        assert (await http.delete(f"{path}/{changed['id']}")).status_code == 204
        anew = created(await http.put(path, json={"window": "month", "limit_usd": "7"}))
    assert (anew["enforcement"], anew["alert_percents"]) == ("hard", [50, 80, 100])


async def test_alerts_of_test_keys_are_marked_as_such(served: Served) -> None:
    await set_budget(served, limit_usd="0.000001", livemode=False, enforcement="soft")
    async with served.http(await served.key(livemode=False)) as http:
        answered(await http.post(GENERATIONS, json=LOW))
    assert {event["livemode"] for event in await events(served)} == {False}


async def test_calls_of_one_batch_are_charged_to_their_own_budgets_alone(served: Served) -> None:
    ann, bob = await served.key(name="ann"), await served.key(name="bob")
    await set_budget(served, limit_usd="1", api_key_id=str(ann.id))
    await set_budget(served, limit_usd="2")
    wanted = [
        {"api_key_id": str(key.id), "amount_nano": amount} for key, amount in ((ann, 5), (bob, 70))
    ]
    await reserve_together(served, *wanted)
    held = [(owner, held) for owner, _, _, held in await budget_rows(served)]
    assert sorted(held) == [("key", 5), ("tenant", 75)]
