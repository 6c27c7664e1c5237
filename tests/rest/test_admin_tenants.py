"""Operators' tenants and users over REST: made, listed, changed, suspended."""

import asyncio
from datetime import datetime
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

LIST = 105


async def test_a_tenant_is_made_shown_and_listed(served: Served) -> None:
    async with admin(served) as http:
        made = created(await http.post("/tenants", json={"name": "Ünï & Co"}))
        zoned = created(
            await http.post("/tenants", json={"name": "globex", "time_zone": "Europe/Madrid"})
        )
        shown = answered(await http.get(f"/tenants/{made['id']}"))
        listed = await every_page(http, "/tenants")
        by_name = await every_page(http, "/tenants", name="globex")
    assert made == {
        "id": made["id"],
        "object": "tenant",
        "name": "Ünï & Co",
        "status": "active",
        "time_zone": "UTC",
        "continuity": True,
        "fallback": True,
        "stores_prompts": False,
        "image_retention_seconds": None,
        "max_image_bytes": None,
        "created_at": made["created_at"],
        "deleted_at": None,
    }
    assert datetime.fromisoformat(made["created_at"]).tzinfo is not None
    assert shown == made
    assert [tenant["name"] for tenant in listed] == ["globex", "Ünï & Co", "acme"]
    assert by_name == [zoned]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "name"),
        ({"name": ""}, "invalid_value", "name"),
        ({"name": "   "}, "invalid_value", "name"),
        ({"name": "x" * 101}, "invalid_value", "name"),
        ({"name": "a\x00b"}, "invalid_value", "name"),
        ({"name": "line\nbreak"}, "invalid_value", "name"),
        ({"name": 5}, "invalid_value", "name"),
        ({"name": None}, "invalid_value", "name"),
        ({"name": "x", "time_zone": "Mars/Olympus"}, "invalid_value", "time_zone"),
        ({"name": "x", "time_zone": "localtime"}, "invalid_value", "time_zone"),
        ({"name": "x", "time_zone": "UTC\x00"}, "invalid_value", "time_zone"),
        ({"name": "x", "time_zone": "../../etc/passwd"}, "invalid_value", "time_zone"),
        ({"name": "x", "zone": "UTC"}, "unknown_parameter", "zone"),
        ({"name": "x", "id": NO_ID}, "unknown_parameter", "id"),
    ],
)
async def test_an_invalid_tenant_is_refused_with_the_field(
    unchanged: Served, body: dict[str, Any], code: str, param: str
) -> None:
    async with admin(unchanged) as http:
        assert refusal(await http.post("/tenants", json=body)) == Refusal(400, code, param)
        assert len(await every_page(http, "/tenants")) == 1


async def test_of_concurrent_requests_for_one_tenant_one_succeeds(served: Served) -> None:
    async with admin(served) as http:
        answers = await asyncio.gather(
            *(http.post("/tenants", json={"name": "globex"}) for _ in range(8))
        )
        listed = await every_page(http, "/tenants", name="globex")
    refused = [answer for answer in answers if answer.status_code != 201]
    assert {refusal(answer) for answer in refused} == {Refusal(409, "already_exists", "name")}
    assert {answer.headers["x-should-retry"] for answer in refused} == {"false"}
    assert (len(refused), len(listed)) == (7, 1)
    made = await entries(served, action="tenant.created", tenant=listed[0]["id"])
    assert len(made) == 1


async def test_a_change_applies_to_the_next_request(served: Served) -> None:
    key = await served.key()
    path = f"/tenants/{served.tenant_id}"
    async with admin(served) as http, served.http(key) as tenant:
        for _ in range(20):
            answered(await tenant.get("/v1/models"))
            answered(await http.patch(path, json={"status": "suspended"}))
            assert refusal(await tenant.get("/v1/models")).code == "tenant_suspended"
            answered(await http.patch(path, json={"status": "active"}))
        retired = {**LOW, "model": "dall-e-3", "quality": "standard"}
        quote = "/v1/images/quotes"
        answered(await tenant.post(quote, json=retired))
        answered(await http.patch(path, json={"continuity": False}))
        assert refusal(await tenant.post(quote, json=retired)).status == 400
        answered(await http.patch(path, json={"stores_prompts": True}))
        answered(await tenant.post(GENERATIONS, json=LOW))
        [image] = (await tenant.get("/v1/images")).json()["data"]
    assert image["prompt"] == LOW["prompt"]


async def test_fields_that_a_change_does_not_name_stay_unchanged(served: Served) -> None:
    async with admin(served) as http:
        made = created(await http.post("/tenants", json={"name": "globex"}))
        path = f"/tenants/{made['id']}"
        changes: list[dict[str, Any]] = [
            {"name": "initech"},
            {"time_zone": "Asia/Kathmandu"},
            {"image_retention_seconds": 60, "max_image_bytes": 2**63 - 1},
            {"image_retention_seconds": None, "max_image_bytes": 0},
            {"stores_prompts": True, "continuity": False},
            {},
            {"status": "suspended"},
        ]
        expected = made
        for change in changes:
            expected = {**expected, **change}
            assert answered(await http.patch(path, json=change)) == expected
        assert answered(await http.get(path)) == expected


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"status": "deleted"}, "status"),
        ({"status": None}, "status"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"continuity": "yes"}, "continuity"),
        ({"continuity": 1}, "continuity"),
        ({"continuity": None}, "continuity"),
        ({"image_retention_seconds": 59}, "image_retention_seconds"),
        ({"image_retention_seconds": 315_360_001}, "image_retention_seconds"),
        ({"image_retention_seconds": -1}, "image_retention_seconds"),
        ({"image_retention_seconds": 3600.0}, "image_retention_seconds"),
        ({"image_retention_seconds": "3600"}, "image_retention_seconds"),
        ({"image_retention_seconds": True}, "image_retention_seconds"),
        ({"max_image_bytes": -1}, "max_image_bytes"),
        ({"max_image_bytes": 2**63}, "max_image_bytes"),
        ({"max_image_bytes": 10**30}, "max_image_bytes"),
    ],
)
async def test_an_invalid_change_is_refused_as_a_whole(
    unchanged: Served, change: dict[str, Any], param: str
) -> None:
    path = f"/tenants/{unchanged.tenant_id}"
    async with admin(unchanged) as http:
        before = answered(await http.get(path))
        body = {"stores_prompts": not before["stores_prompts"], **change}
        assert refusal(await http.patch(path, json=body)) == Refusal(400, "invalid_value", param)
        assert answered(await http.get(path)) == before


async def test_a_name_that_is_taken_is_refused_and_nothing_changes(served: Served) -> None:
    async with admin(served) as http:
        made = created(await http.post("/tenants", json={"name": "globex"}))
        path = f"/tenants/{made['id']}"
        refused = await http.patch(path, json={"name": "acme", "continuity": False})
        assert refusal(refused) == Refusal(409, "already_exists", "name")
        assert answered(await http.get(path)) == made
        names = await asyncio.gather(
            *(http.patch(path, json={"name": f"globex-{n}"}) for n in range(8))
        )
        final = answered(await http.get(path))["name"]
    assert {answer.status_code for answer in names} == {200}
    renamed = await entries(served, action="tenant.updated", tenant=made["id"])
    steps = [(entry["before"]["name"], entry["after"]["name"]) for entry in renamed]
    # Each row begins where the one before it ended: none was written from a stale reading.
    assert [steps[0][0], *(after for _, after in steps)] == [
        *(before for before, _ in steps),
        final,
    ]


async def test_an_unknown_tenant_is_not_found(served: Served) -> None:
    not_found = Refusal(404, "not_found", "tenant_id")
    async with admin(served) as http:
        for path in ("", "/users", "/keys", "/credentials", "/budgets"):
            assert refusal(await http.get(f"/tenants/{NO_ID}{path}")) == not_found
        for method, path, body in (
            ("POST", "/users", {"name": "alice"}),
            ("POST", "/keys", {}),
            ("POST", f"/keys/{NO_ID}/roll", {}),
            ("PUT", "/credentials/openai", {"secret": "sk-0123456789"}),
            ("PUT", "/budgets", {"window": "day", "limit_usd": "1"}),
        ):
            answer = await http.request(method, f"/tenants/{NO_ID}{path}", json=body)
            assert refusal(answer) == not_found
        for path in (f"/keys/{NO_ID}", "/credentials/openai", "/budgets/1"):
            assert refusal(await http.delete(f"/tenants/{NO_ID}{path}")) == not_found
        assert refusal(await http.patch(f"/tenants/{NO_ID}", json={})).status == 404
        for bad in ("acme", "1", "%00", "x" * 2000):
            shown = refusal(await http.get(f"/tenants/{bad}"))
            assert shown == Refusal(400, "invalid_value", "tenant_id")


async def test_users_are_made_and_listed_once_each(served: Served) -> None:
    path = f"/tenants/{served.tenant_id}/users"
    other = f"/tenants/{await served.tenant('other')}/users"
    async with admin(served) as http:
        alice = created(await http.post(path, json={"name": "alice"}))
        assert alice == {
            "id": alice["id"],
            "object": "user",
            "name": "alice",
            "status": "active",
            "created_at": alice["created_at"],
            "deleted_at": None,
        }
        twice = await asyncio.gather(*(http.post(path, json={"name": "bob"}) for _ in range(4)))
        assert sorted(answer.status_code for answer in twice) == [201, 409, 409, 409]
        created(await http.post(other, json={"name": "alice"}))
        assert [user["name"] for user in await every_page(http, path)] == ["bob", "alice"]
        assert await every_page(http, path, name="alice") == [alice]
        for name in ("", "x" * 101, "\x00", 5, None):
            assert refusal(await http.post(path, json={"name": name})).param == "name"


async def test_lists_of_more_than_a_hundred_are_read_page_by_page(served: Served) -> None:
    async with admin(served) as http:
        path = f"/tenants/{served.tenant_id}/users"
        for n in range(LIST):
            created(await http.post(path, json={"name": f"user-{n}"}))
            created(await http.post("/tenants", json={"name": f"tenant-{n}"}))
        for limit in (7, 100):
            users = await every_page(http, path, limit=limit)
            tenants = await every_page(http, "/tenants", limit=limit)
            assert [user["name"] for user in users] == [f"user-{n}" for n in range(LIST)][::-1]
            names = [*(f"tenant-{n}" for n in range(LIST - 1, -1, -1)), "acme"]
            assert [tenant["name"] for tenant in tenants] == names
        for query in ("limit=0", "limit=101", "limit=x", "limit=", "after=acme", "name=%00"):
            answer = refusal(await http.get(f"/tenants?{query}"))
            assert answer == Refusal(400, "invalid_value", query.partition("=")[0])
