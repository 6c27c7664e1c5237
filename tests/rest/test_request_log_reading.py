"""`/v1/requests` and `/admin/v1/requests`: found by any id, filtered, isolated."""

from typing import Any

import httpx2
import pytest

from tests.admin_helpers import NO_ID, admin, answered, every_page, refusal
from tests.harness import GPT2, Served
from tests.stub_openai import Fault, Stub

PATH = "/v1/images/generations"
LOW = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
REQUESTS = "/v1/requests"


async def ask(served: Served, key: Any, name: str, **changes: Any) -> httpx2.Response:
    """Ask for an image as the client's own request `name`."""
    async with served.http(key) as http:
        return await http.post(PATH, json=LOW | changes, headers={"X-Request-Id": name})


async def read(served: Served, owner: Any, path: str = "", **query: Any) -> Any:
    """The answer of `/v1/requests…` after pending records are written."""
    await served.gateway.request_log.flush()
    async with served.http(owner) as http:
        return answered(await http.get(REQUESTS + path, params=query))


def names(listed: Any) -> list[str | None]:
    """The client's ids of a list; reading is a request too, without one."""
    return [one["client_request_id"] for one in listed["data"] if one["client_request_id"]]


async def test_a_request_is_found_by_each_of_its_ids_with_what_it_cost(
    served: Served, stub: Stub
) -> None:
    key = await served.key(user="alice", name="shop")
    stub.faults.add(Fault("status", status=500))
    broken = await ask(served, key, "order-1")
    made = await ask(served, key, "order-2")
    for answer, name in ((broken, "order-1"), (made, "order-2")):
        ids = (
            answer.headers["x-request-id"],
            name,
            answer.headers["x-gateway-generation-id"],
        )
        first, *others = [await read(served, key, f"/{one}") for one in ids]
        assert others == [first, first]
        assert (first["id"], first["client_request_id"], first["generation_id"]) == ids
    shown = {
        name: first[name]
        for name in ("user", "key_name", "key_last4", "status", "error_code", "cost_status")
    }
    assert shown == {
        "user": "alice",
        "key_name": "shop",
        "key_last4": key.last4,
        "status": 200,
        "error_code": None,
        "cost_status": "actual",
    }
    [line] = stub.bill
    assert first["provider_request_id"] == line.request_id
    assert first["cost_usd"] == first["generation"]["cost_usd"] == "0.005930000"
    assert [one["kind"] for one in first["generation"]["ledger"]] == ["hold", "post"]
    open_ = await read(served, key, "/order-1")
    assert (open_["cost_usd"], open_["generation"]["state"]) == (None, "unknown")
    assert open_["generation"]["held_usd"] != "0.000000000"


async def test_of_several_with_the_clients_id_the_newest_is_shown(served: Served) -> None:
    key = await served.key()
    answers = [await ask(served, key, "again", sise="x") for _ in range(3)]
    found = await read(served, key, "/again")
    assert (found["id"], found["others"]) == (answers[-1].headers["x-request-id"], 2)
    assert found["error_param"] == "sise"
    assert found["generation"] is None


async def test_requests_are_filtered_and_read_page_by_page(served: Served, stub: Stub) -> None:
    key, other = await served.key(), await served.key()
    await ask(served, key, "made")
    refused = await ask(served, key, "refused", sise="x")
    stub.faults.add(Fault("status", status=500))
    broken = await ask(served, other, "broken")
    expected = {
        ("status", "200"): ["made"],
        ("error_code", "unknown_parameter"): ["refused"],
        ("model", GPT2): ["broken", "made"],
        ("key", str(other.id)): ["broken"],
        ("client_request_id", "made"): ["made"],
        ("generation_id", broken.headers["x-gateway-generation-id"]): ["broken"],
        ("start", "2026-01-01"): ["broken", "refused", "made"],
        ("end", "2026-01-01"): [],
    }
    seen = {
        (name, value): names(await read(served, key, **{name: value})) for name, value in expected
    }
    assert seen == expected
    first = await read(served, key, limit=2, status=400)
    assert (names(first), first["has_more"]) == (["refused"], False)
    rest = await read(served, key, limit=1, after=refused.headers["x-request-id"])
    assert (names(rest), rest["has_more"]) == (["made"], False)


async def test_an_invalid_filter_is_refused(served: Served) -> None:
    async with served.http(await served.key()) as http:
        for query, param in (
            ({"after": "order-1"}, "after"),
            ({"status": "99"}, "status"),
            ({"start": "soon"}, "start"),
            ({"key": "x"}, "key"),
            ({"client_request_id": "naïve"}, "client_request_id"),
            ({"tenant": NO_ID}, "tenant"),
        ):
            assert refusal(await http.get(REQUESTS, params=query)).param == param
        for unknown in ("unknown", NO_ID, "req_0ffffffffffffffffffffff0"):
            missing = refusal(await http.get(f"{REQUESTS}/{unknown}"))
            assert (missing.status, missing.code) == (404, "not_found")


@pytest.fixture
async def shared(served: Served, stub: Stub) -> dict[str, Any]:
    """Keys of two tenants, of two users, and of both modes; each has made one request."""
    b = await served.tenant("other")
    keys = {
        "live": await served.key(),
        "test": await served.key(livemode=False),
        "alice": await served.key(user="alice"),
        "bob": await served.key(user="bob"),
        "foreign": await served.key(tenant_id=b),
        "narrow": await served.key(scopes=["images:write"]),
    }
    for name, key in keys.items():
        assert (await ask(served, key, name)).status_code == 200
    return keys


async def test_each_key_sees_the_requests_of_its_mode_and_user_alone(
    served: Served, shared: dict[str, Any]
) -> None:
    seen = {
        name: set(names(await read(served, key)))
        for name, key in shared.items()
        if name != "narrow"
    }
    assert seen == {
        "live": {"live", "alice", "bob", "narrow"},
        "test": {"test"},
        "alice": {"alice"},
        "bob": {"bob"},
        "foreign": {"foreign"},
    }
    mine = (await read(served, shared["bob"], "/bob"))["id"], "bob"
    generation = (await read(served, shared["bob"], "/bob"))["generation_id"]
    for name in ("test", "alice", "foreign"):
        async with served.http(shared[name]) as http:
            for one in (*mine, generation):
                assert (await http.get(f"{REQUESTS}/{one}")).status_code == 404
    async with served.http(shared["narrow"]) as http:
        assert refusal(await http.get(REQUESTS)).code == "insufficient_scope"


async def test_an_operator_sees_all_requests_and_those_without_a_tenant(
    served: Served, shared: dict[str, Any]
) -> None:
    async with served.http("igw_live_wrong") as http:
        refused = await http.get("/v1/models", headers={"X-Request-Id": "unowned"})
    await served.gateway.request_log.flush()
    async with admin(served) as http:
        every = await every_page(http, "/requests", limit=3)
        [missed] = await every_page(http, "/requests", status=401)
        tests = await every_page(http, "/requests", livemode="false")
        shown = answered(await http.get("/requests/foreign"))
        others = await every_page(http, "/requests", tenant=shown["tenant_id"])
    named = {one["client_request_id"]: one["tenant"] for one in every if one["client_request_id"]}
    assert named == dict.fromkeys(shared, "acme") | {"foreign": "other", "unowned": None}
    assert missed["id"] == refused.headers["x-request-id"]
    assert (missed["tenant_id"], missed["operator_key_id"]) == (None, None)
    assert [one["client_request_id"] for one in tests] == ["test"]
    assert [one["client_request_id"] for one in others] == ["foreign"]
    assert (shown["tenant"], shown["generation"]["state"]) == ("other", "posted")


async def test_a_deleted_tenants_requests_are_deleted_from_the_log(
    served: Served, shared: dict[str, Any]
) -> None:
    async with admin(served) as http:
        await served.gateway.request_log.flush()
        gone = answered(await http.get("/requests/foreign"))["tenant_id"]
        assert (await http.delete(f"/tenants/{gone}")).is_success
        await served.sweep()
        left = await every_page(http, "/requests", livemode="true")
    assert {one["client_request_id"] for one in left} == {"live", "alice", "bob", "narrow"}
    kept = await served.owner_sql("SELECT DISTINCT tenant_id FROM ledger")
    assert gone in {str(row.tenant_id) for row in kept}
