"""Operators' budgets over REST: what is set binds the next call, what is removed no longer does."""

import asyncio
from typing import Any

import pytest

from tests.admin_helpers import (
    GENERATIONS,
    LOW,
    NO_ID,
    Refusal,
    admin,
    answered,
    created,
    entries,
    every_page,
    refusal,
)
from tests.harness import Served
from tests.stub_openai import Fault, Stub


def budgets_of(served: Served) -> str:
    return f"/tenants/{served.tenant_id}/budgets"


async def test_a_budget_is_made_changed_and_removed(served: Served) -> None:
    path = budgets_of(served)
    async with admin(served) as http:
        made = created(await http.put(path, json={"window": "month", "limit_usd": "12.50"}))
        raised = answered(await http.put(path, json={"window": "month", "limit_usd": "50"}))
        same = answered(await http.put(path, json={"window": "month", "limit_usd": "50.00"}))
        assert await every_page(http, path) == [raised]
        removed = await http.delete(f"{path}/{made['id']}")
        assert (removed.status_code, removed.content) == (204, b"")
        assert await every_page(http, path) == []
        gone = refusal(await http.delete(f"{path}/{made['id']}"))
    assert made == {
        "id": made["id"],
        "object": "budget",
        "owner": "tenant",
        "api_key_id": None,
        "api_key_name": None,
        "user_id": None,
        "user_name": None,
        "livemode": True,
        "window": "month",
        "limit_usd": "12.50",
        "raise": None,
        "enforcement": "hard",
        "alert_percents": [50, 80, 100],
        "spent_usd": "0.000000000",
        "held_usd": "0.000000000",
        "remaining_usd": "12.500000000",
        "period_start": made["period_start"],
        "resets_at": made["resets_at"],
    }
    assert raised == made | {"limit_usd": "50.00", "remaining_usd": "50.000000000"}
    assert same == raised
    assert gone == Refusal(404, "not_found", "budget_id")


async def test_a_raised_budget_admits_the_next_call(served: Served) -> None:
    path = budgets_of(served)
    key = await served.key()
    async with admin(served) as http, served.http(key) as tenant:
        low, high = ({"window": "total", "limit_usd": usd} for usd in ("0.000001", "5"))
        created(await http.put(path, json=low))
        for _ in range(5):
            refused = refusal(await tenant.post(GENERATIONS, json=LOW))
            assert (refused.status, refused.code) == (402, "budget_exceeded")
            answered(await http.put(path, json=high))
            answered(await tenant.post(GENERATIONS, json=LOW))
            answered(await http.put(path, json=low))


async def test_a_removed_budget_binds_no_call_and_keeps_counting_when_set_again(
    served: Served,
) -> None:
    path = budgets_of(served)
    key = await served.key()
    body = {"window": "total", "limit_usd": "0.01"}
    async with admin(served) as http, served.http(key) as tenant:
        made = created(await http.put(path, json=body))
        answered(await tenant.post(GENERATIONS, json=LOW))
        assert refusal(await tenant.post(GENERATIONS, json=LOW)).status == 402
        assert (await http.delete(f"{path}/{made['id']}")).status_code == 204
        assert answered(await tenant.get("/v1/budgets"))["data"] == []
        for _ in range(3):
            answered(await tenant.post(GENERATIONS, json=LOW))
        again = created(await http.put(path, json=body))
        assert again["id"] == made["id"]
        total = answered(await tenant.get("/v1/usage"))["total"]
        assert (total["requests"], again["spent_usd"]) == (4, total["cost_usd"])
        assert again["remaining_usd"] == "0.000000000"
        assert refusal(await tenant.post(GENERATIONS, json=LOW)).status == 402


async def test_a_budget_removed_during_a_call_is_settled_all_the_same(
    served: Served, stub: Stub
) -> None:
    path = budgets_of(served)
    key = await served.key()
    stub.faults.add(Fault(hold=True))
    async with admin(served) as http, served.http(key) as tenant:
        made = created(await http.put(path, json={"window": "day", "limit_usd": "5"}))
        call = asyncio.create_task(tenant.post(GENERATIONS, json=LOW))
        await stub.until_held(1)
        assert (await http.delete(f"{path}/{made['id']}")).status_code == 204
        stub.release()
        answered(await call)


async def test_budgets_of_keys_users_and_modes_stand_beside_each_other(served: Served) -> None:
    path = budgets_of(served)
    async with admin(served) as http:
        users = f"/tenants/{served.tenant_id}/users"
        alice = created(await http.post(users, json={"name": "alice"}))
        keys = f"/tenants/{served.tenant_id}/keys"
        key = created(await http.post(keys, json={"livemode": False, "user_id": alice["id"]}))
        twin = created(await http.post(f"{keys}/{key['id']}/roll", json={}))
        bodies: list[dict[str, Any]] = [
            {"window": "day", "limit_usd": "1"},
            {"window": "day", "limit_usd": "2", "livemode": False},
            {"window": "day", "limit_usd": "3", "user_id": alice["id"], "livemode": False},
            {"window": "day", "limit_usd": "0.000001", "api_key_id": twin["id"]},
        ]
        made = [created(await http.put(path, json=body)) for body in bodies]
        assert await every_page(http, path, limit=3) == made[::-1]
        async with served.http(twin["secret"]) as tenant:
            refused = await tenant.post(GENERATIONS, json=LOW)
            assert refusal(refused).code == "budget_exceeded"
            held = answered(await tenant.get("/v1/budgets"))["data"]
    assert [(b["owner"], b["livemode"], b["api_key_id"], b["user_id"]) for b in made] == [
        ("tenant", True, None, None),
        ("tenant", False, None, None),
        ("user", False, None, alice["id"]),
        # A budget of a rolled key limits its whole line, in the key's own mode.
        ("key", False, key["id"], None),
    ]
    assert {budget["id"] for budget in held} == {budget["id"] for budget in made[1:]}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"limit_usd": "-1"}, "invalid_value", "limit_usd"),
        ({"limit_usd": "1000000000.000000001"}, "invalid_value", "limit_usd"),
        ({"limit_usd": "1e400000000"}, "invalid_value", "limit_usd"),
        ({"limit_usd": "9" * 99}, "invalid_value", "limit_usd"),
        ({"limit_usd": "9" * 5000}, "invalid_value", "limit_usd"),
        ({"limit_usd": "0.0000000001"}, "invalid_value", "limit_usd"),
        ({"limit_usd": "1" + "0" * 30 + ".5"}, "invalid_value", "limit_usd"),
        ({"limit_usd": "NaN"}, "invalid_value", "limit_usd"),
        ({"limit_usd": "Infinity"}, "invalid_value", "limit_usd"),
        ({"limit_usd": "1_000"}, "invalid_value", "limit_usd"),
        ({"limit_usd": " 5"}, "invalid_value", "limit_usd"),
        ({"limit_usd": "\u0665"}, "invalid_value", "limit_usd"),
        ({"limit_usd": ""}, "invalid_value", "limit_usd"),
        ({"limit_usd": 5}, "invalid_value", "limit_usd"),
        ({"limit_usd": 5.5}, "invalid_value", "limit_usd"),
        ({"limit_usd": None}, "invalid_value", "limit_usd"),
        ({"window": "year"}, "invalid_value", "window"),
        ({"window": None}, "invalid_value", "window"),
        ({"livemode": "true"}, "invalid_value", "livemode"),
        ({"api_key_id": "x"}, "invalid_value", "api_key_id"),
        ({"api_key_id": NO_ID, "user_id": NO_ID}, "invalid_value", "user_id"),
        ({"limit": "5"}, "unknown_parameter", "limit"),
    ],
)
async def test_an_invalid_budget_is_refused(
    unchanged: Served, changes: dict[str, Any], code: str, param: str
) -> None:
    async with admin(unchanged) as http:
        body = {"window": "day", "limit_usd": "5", **changes}
        answer = refusal(await http.put(budgets_of(unchanged), json=body))
        assert answer == Refusal(400, code, param)
        assert await every_page(http, budgets_of(unchanged)) == []


async def test_the_largest_and_the_smallest_limits_are_taken(served: Served) -> None:
    async with admin(served) as http:
        for limit, shown in (
            ("1000000000", "1000000000.00"),
            ("999999999.999999999", "999999999.999999999"),
            ("0", "0.00"),
            ("0.000000001", "0.000000001"),
        ):
            body = {"window": "day", "limit_usd": limit}
            assert (await http.put(budgets_of(served), json=body)).json()["limit_usd"] == shown


async def test_a_budget_belongs_to_an_owner_of_the_tenant(served: Served) -> None:
    other = await served.tenant("other")
    key = await served.key(tenant_id=other)
    path = budgets_of(served)
    async with admin(served) as http:
        bob = created(await http.post(f"/tenants/{other}/users", json={"name": "bob"}))
        body = {"window": "day", "limit_usd": "5"}
        for owner, ids in (("user_id", (NO_ID, bob["id"])), ("api_key_id", (NO_ID, str(key.id)))):
            for one in ids:
                answer = refusal(await http.put(path, json={**body, owner: one}))
                assert answer == Refusal(404, "not_found", owner)
        theirs = created(await http.put(f"/tenants/{other}/budgets", json=body))
        gone = Refusal(404, "not_found", "budget_id")
        for budget_id in (theirs["id"], "999999", str(2**63 - 1)):
            assert refusal(await http.delete(f"{path}/{budget_id}")) == gone
        for bad in ("0", "-1", str(2**63), "x", "1.5"):
            answer = refusal(await http.delete(f"{path}/{bad}"))
            assert answer == Refusal(400, "invalid_value", "budget_id")
        assert await every_page(http, f"/tenants/{other}/budgets") == [theirs]


async def test_of_concurrent_requests_for_one_budget_one_creates_it(served: Served) -> None:
    path = budgets_of(served)
    async with admin(served) as http:
        answers = await asyncio.gather(
            *(http.put(path, json={"window": "day", "limit_usd": str(n)}) for n in range(1, 9))
        )
        [budget] = await every_page(http, path)
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    changes = await entries(served, tenant=str(served.tenant_id))
    limits = [entry["after"]["limit_usd"] for entry in changes if "budget" in entry["action"]]
    assert (len(limits), limits[-1]) == (8, budget["limit_usd"])


async def test_budgets_of_more_than_a_page_are_listed(served: Served) -> None:
    path = budgets_of(served)
    async with admin(served) as http:
        made = []
        for n in range(105):
            users = f"/tenants/{served.tenant_id}/users"
            user = created(await http.post(users, json={"name": f"user-{n}"}))
            body = {"window": "day", "limit_usd": "5", "user_id": user["id"]}
            made.append(created(await http.put(path, json=body))["id"])
        for limit in (10, 100):
            listed = await every_page(http, path, limit=limit)
            assert [budget["id"] for budget in listed] == made[::-1]
