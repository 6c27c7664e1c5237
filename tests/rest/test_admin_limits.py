"""Operators' limits over REST: in force with the very next request, told in the audit trail."""

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


def limits_of(served: Served) -> str:
    return f"/tenants/{served.tenant_id}/limits"


async def test_a_limit_is_made_changed_removed_and_audited(served: Served) -> None:
    path = limits_of(served)
    async with admin(served) as http:
        made = created(await http.put(path, json={"kind": "images", "value": 20}))
        raised = answered(await http.put(path, json={"kind": "images", "value": 30}))
        answered(await http.put(path, json={"kind": "images", "value": 30}))
        [listed] = await every_page(http, path)
        removed = await http.delete(f"{path}/{made['id']}")
        assert (removed.status_code, removed.content) == (204, b"")
        assert await every_page(http, path) == []
        gone = refusal(await http.delete(f"{path}/{made['id']}"))
    assert made == {
        "id": made["id"],
        "object": "limit",
        "owner": "tenant",
        "api_key_id": None,
        "api_key_name": None,
        "user_id": None,
        "user_name": None,
        "livemode": True,
        "kind": "images",
        "value": 20,
        "created_at": made["created_at"],
        "updated_at": made["updated_at"],
    }
    assert raised == {**made, "value": 30, "updated_at": raised["updated_at"]}
    assert {**listed, "updated_at": None} == {**raised, "updated_at": None}
    assert gone == Refusal(404, "not_found", "limit_id")
    told = (await entries(served, tenant=str(served.tenant_id)))[1:]
    kept = ("api_key_id", "user_id", "livemode", "kind", "value")
    first, second = ({name: one[name] for name in kept} for one in (made, raised))
    assert [(e["action"], e["object_id"], e["before"], e["after"]) for e in told] == [
        ("limit.created", made["id"], None, first),
        ("limit.updated", made["id"], first, second),
        ("limit.removed", made["id"], second, None),
    ]


async def test_a_limit_applies_to_the_next_request(served: Served) -> None:
    path = limits_of(served)
    key = await served.key()
    async with admin(served) as http, served.http(key) as tenant:
        for _ in range(10):
            answered(await tenant.post(GENERATIONS, json=LOW))
            body = {"kind": "requests", "value": 0, "api_key_id": str(key.id)}
            made = created(await http.put(path, json=body))
            assert refusal(await tenant.post(GENERATIONS, json=LOW)).code == "rate_limit_exceeded"
            assert (await http.delete(f"{path}/{made['id']}")).status_code == 204


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"value": -1}, Refusal(400, "invalid_value", "value")),
        ({"value": 10**9 + 1}, Refusal(400, "invalid_value", "value")),
        ({"value": 10**30}, Refusal(400, "invalid_value", "value")),
        ({"value": 1.5}, Refusal(400, "invalid_value", "value")),
        ({"value": "5"}, Refusal(400, "invalid_value", "value")),
        ({"value": True}, Refusal(400, "invalid_value", "value")),
        ({"value": None}, Refusal(400, "invalid_value", "value")),
        ({"kind": "bytes"}, Refusal(400, "invalid_value", "kind")),
        ({"livemode": "no"}, Refusal(400, "invalid_value", "livemode")),
        ({"user_id": NO_ID}, Refusal(404, "not_found", "user_id")),
        ({"api_key_id": NO_ID}, Refusal(404, "not_found", "api_key_id")),
        ({"api_key_id": NO_ID, "user_id": NO_ID}, Refusal(400, "invalid_value", "user_id")),
        ({"per": "hour"}, Refusal(400, "unknown_parameter", "per")),
    ],
)
async def test_an_invalid_limit_is_refused(
    unchanged: Served, changes: dict[str, Any], expected: Refusal
) -> None:
    async with admin(unchanged) as http:
        body = {"kind": "images", "value": 5, **changes}
        assert refusal(await http.put(limits_of(unchanged), json=body)) == expected
        assert await every_page(http, limits_of(unchanged)) == []


async def test_of_concurrent_requests_for_one_limit_one_creates_it(served: Served) -> None:
    path = limits_of(served)
    async with admin(served) as http:
        answers = await asyncio.gather(
            *(http.put(path, json={"kind": "images", "value": n}) for n in range(1, 9))
        )
        assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
        assert len(await every_page(http, path)) == 1


async def test_limits_of_more_than_a_page_are_listed(served: Served) -> None:
    path = limits_of(served)
    async with admin(served) as http:
        made = []
        for n in range(105):
            users = f"/tenants/{served.tenant_id}/users"
            user = created(await http.post(users, json={"name": f"user-{n}"}))
            body = {"kind": "images", "value": 5, "user_id": user["id"]}
            made.append(created(await http.put(path, json=body))["id"])
        for limit in (10, 100):
            listed = await every_page(http, path, limit=limit)
            assert [one["id"] for one in listed] == made[::-1]
