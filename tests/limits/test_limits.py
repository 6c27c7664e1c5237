"""Limits in one process, through both fronts: refusals, their headers, and no cost."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest
from mcp.types import TextContent

from gateway.billing import budgets
from gateway.config import Settings
from gateway.db.engine import TenantSession
from gateway.errors import InvalidRequest, NotFound
from gateway.money import parse_usd
from gateway.tenancy import api_keys, limit_rows
from tests.harness import Served, error_of, served_gateway
from tests.limits_helpers import BODY, PATH, burst, limit
from tests.stub_openai import Fault, Stub

HEARD_WITHIN_SECONDS = 5
"""Long before the cache would look by itself (30 s), with patience for a busy machine."""

DRAFT = "RateLimit-Policy"


async def test_a_request_over_the_limit_is_refused_with_a_time_and_holds_nothing(
    served: Served, stub: Stub
) -> None:
    await limit(served, "requests", 2)
    async with served.http(await served.key()) as http:
        answers = [await http.post(PATH, json=BODY) for _ in range(3)]
    refused = answers[-1]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    error = error_of(refused)
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "requests")
    assert "tenant-requests" in error["message"]
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert "X-Should-Retry" not in refused.headers
    assert len(stub.bill) == 2
    [row] = await served.owner_sql("SELECT count(*) FROM reservation")
    assert row[0] == 2


async def test_headers_say_how_the_tightest_limit_stands_and_name_all(served: Served) -> None:
    key = await served.key()
    await limit(served, "requests", 100)
    await limit(served, "requests", 3, api_key_id=key.id)
    await limit(served, "images", 10)
    await limit(served, "concurrent", 5)
    async with served.http(key) as http:
        first = (await http.post(PATH, json=BODY | {"n": 2})).headers
        for _ in range(2):
            last = (await http.post(PATH, json=BODY)).headers
        refused = (await http.post(PATH, json=BODY)).headers
    names = ("Limit", "Remaining")
    requests = [first[f"X-RateLimit-{name}-Requests"] for name in names]
    images = [first[f"X-RateLimit-{name}-Images"] for name in names]
    assert (requests, images) == (["3", "2"], ["10", "8"])
    assert first["X-RateLimit-Reset-Requests"].endswith("s")
    assert first[DRAFT] == (
        '"tenant-requests";q=100;w=60, "key-requests";q=3;w=60, '
        '"tenant-images";q=10;qu="images";w=60, "tenant-concurrent";q=5;qu="concurrent-requests"'
    )
    assert '"key-requests";r=2;t=' in first["RateLimit"]
    assert '"tenant-concurrent";r=4' in first["RateLimit"]
    assert (last["X-RateLimit-Remaining-Requests"], last["X-RateLimit-Remaining-Images"]) == (
        "0",
        "6",
    )
    # A refusal has used up nothing.
    assert refused["X-RateLimit-Remaining-Images"] == "6"
    assert f'"key-requests";r=0;t={refused["Retry-After"]}' in refused["RateLimit"]


async def test_without_limits_there_are_no_limit_headers(served: Served) -> None:
    async with served.http(await served.key()) as http:
        answer = await http.post(PATH, json=BODY)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if "ratelimit" in name]


async def test_a_stream_says_its_limits_before_the_first_image(served: Served) -> None:
    await limit(served, "requests", 1)
    body = BODY | {"stream": True, "partial_images": 1}
    async with served.http(await served.key()) as http:
        streamed = await http.post(PATH, json=body)
        refused = await http.post(PATH, json=body)
    assert (streamed.status_code, refused.status_code) == (200, 429)
    assert streamed.headers["X-RateLimit-Remaining-Requests"] == "0"
    assert streamed.headers["content-type"].startswith("text/event-stream")


async def test_the_simple_form_counts_and_says_so_too(served: Served) -> None:
    await limit(served, "images", 3)
    async with served.http(await served.key()) as http:
        made = await http.post("/generate_image", json={"prompt": "a cat", "params": {"n": 3}})
        refused = await http.post("/generate_image", json={"prompt": "a cat"})
    assert (made.status_code, made.headers["X-RateLimit-Remaining-Images"]) == (200, "0")
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")


async def test_a_tool_is_refused_with_the_name_of_the_limit_and_when_to_come_again(
    served: Served,
) -> None:
    key = await served.key()
    await limit(served, "requests", 1)
    async with served.http(key) as http:
        assert (await http.post(PATH, json=BODY)).status_code == 200
    async with served.mcp(key) as client:
        result = await client.call_tool("generate_image", dict(BODY))
    assert result.is_error
    assert isinstance(result.content[0], TextContent)
    said = result.content[0].text
    assert said.startswith("rate_limit_exceeded: ")
    assert "tenant-requests" in said
    assert "Try again in " in said


async def test_a_request_larger_than_the_limit_is_told_not_to_retry(
    served: Served,
) -> None:
    await limit(served, "images", 2)
    async with served.http(await served.key()) as http:
        refused = await http.post(PATH, json=BODY | {"n": 3})
    assert (refused.status_code, refused.headers["X-Should-Retry"]) == (429, "false")
    assert "Retry-After" not in refused.headers


async def test_limits_are_exact_however_many_requests_come_at_once(
    served: Served, stub: Stub
) -> None:
    await limit(served, "requests", 30)
    async with served.http(await served.key()) as http:
        assert await burst([http], 120) == {200: 30, 429: 90}
    assert len(stub.bill) == 30


async def test_generations_at_once_are_let_in_as_others_end(served: Served, stub: Stub) -> None:
    await limit(served, "concurrent", 2)
    stub.faults.add(Fault(hold=True), Fault(hold=True))
    async with served.http(await served.key()) as http:
        running = [asyncio.create_task(http.post(PATH, json=BODY)) for _ in range(2)]
        await stub.until_held(2)
        refused = await http.post(PATH, json=BODY)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        stub.release()
        assert {answer.status_code for answer in await asyncio.gather(*running)} == {200}
        assert (await http.post(PATH, json=BODY)).status_code == 200


async def test_a_failed_call_gives_its_place_back(served: Served, stub: Stub) -> None:
    await limit(served, "concurrent", 1)
    stub.faults.add(Fault(kind="status", status=500))
    stub.faults.add(Fault(kind="status", status=429, retry_after="0"))
    async with served.http(await served.key()) as http:
        statuses = [(await http.post(PATH, json=BODY)).status_code for _ in range(3)]
    assert statuses == [504, 429, 200]


async def test_a_client_that_leaves_keeps_its_place_until_its_call_has_ended(
    served: Served, stub: Stub
) -> None:
    await limit(served, "concurrent", 1)
    stub.faults.add(Fault(hold=True))
    async with served.http(await served.key()) as http:
        leaving = asyncio.create_task(http.post(PATH, json=BODY))
        await stub.until_held(1)
        leaving.cancel()
        assert (await http.post(PATH, json=BODY)).status_code == 429
        stub.release()
        async with asyncio.timeout(30):
            while (await http.post(PATH, json=BODY)).status_code == 429:
                pass


async def test_live_and_test_calls_have_limits_of_their_own(served: Served) -> None:
    await limit(served, "requests", 1)
    live, test = await served.key(), await served.key(livemode=False)
    async with served.http(live) as http:
        assert await burst([http], 3) == {200: 1, 429: 2}
    async with served.http(test) as http:
        assert await burst([http], 2) == {200: 2}


async def test_a_limit_of_a_user_binds_all_keys_of_that_user_only(served: Served) -> None:
    anna = [await served.key(user="anna") for _ in range(2)]
    bert = await served.key(user="bert")
    [row] = await served.owner_sql("SELECT id FROM tenant_user WHERE name = 'anna'")
    await limit(served, "requests", 3, user_id=row.id)
    async with served.http(anna[0]) as first, served.http(anna[1]) as second:
        assert await burst([first, second], 8) == {200: 3, 429: 5}
    async with served.http(bert) as http:
        assert await burst([http], 5) == {200: 5}


async def test_a_rolled_key_shares_the_limit_of_its_line(served: Served) -> None:
    key = await served.key()
    await limit(served, "requests", 3, api_key_id=key.id)
    async with served.gateway.database.operator() as session:
        twin = await api_keys.roll(
            session, key.id, pepper=served.gateway.core.pepper, grace=timedelta(hours=1)
        )
    async with served.http(key) as old, served.http(twin) as new:
        assert await burst([old, new], 8) == {200: 3, 429: 5}


async def test_a_changed_limit_is_in_force_with_the_next_request(served: Served) -> None:
    async with served.http(await served.key()) as http:
        await limit(served, "requests", 1)
        assert await burst([http], 3) == {200: 1, 429: 2}
        await limit(served, "requests", 3)
        assert await burst([http], 5) == {200: 2, 429: 3}
        [stored] = await stored_limits(served)
        async with served.gateway.database.tenant(served.tenant_id) as session:
            await limit_rows.remove_limit(session, served.tenant_id, stored.id)
        served.gateway.clear_caches(str(served.tenant_id))
        assert await burst([http], 5) == {200: 5}


async def test_a_limit_set_elsewhere_is_in_force_within_a_second(
    served: Served, settings: Settings
) -> None:
    key = await served.key()
    async with served_gateway(settings) as other, other.http(key) as http:
        assert (await http.post(PATH, json=BODY)).status_code == 200
        await limit(served, "requests", 0)
        async with asyncio.timeout(HEARD_WITHIN_SECONDS):
            while (await http.post(PATH, json=BODY)).status_code != 429:
                pass


async def test_defaults_bind_every_tenant_that_has_no_limit_of_its_own(settings: Settings) -> None:
    changed = settings.model_copy(
        update={"default_requests_per_minute": 2, "default_concurrent_generations": 50}
    )
    async with served_gateway(changed) as served:
        other = await served.tenant("other")
        await limit(served, "requests", 4, tenant_id=other)
        async with served.http(await served.key()) as http:
            assert await burst([http], 6) == {200: 2, 429: 4}
        async with served.http(await served.key(tenant_id=other)) as http:
            assert await burst([http], 6) == {200: 4, 429: 2}


async def test_the_house_key_has_limits_that_all_its_tenants_share(
    settings: Settings, stub: Stub
) -> None:
    changed = settings.model_copy(update={"house_images_per_minute": 4})
    async with served_gateway(changed) as served:
        other = await served.tenant("other")
        keys = [await served.key(), await served.key(tenant_id=other)]
        async with served.http(keys[0]) as one, served.http(keys[1]) as two:
            assert await burst([one, two], 10) == {200: 4, 429: 6}
            refused = await one.post(PATH, json=BODY)
        assert "house-images" in error_of(refused)["message"]
        # The house's limits are not disclosed to tenants.
        assert not [name for name in refused.headers if "ratelimit" in name]
        async with served.http(await served.key(livemode=False)) as http:
            assert await burst([http], 2) == {200: 2}
    assert len(stub.bill) == 4


async def test_a_tenant_without_budget_cannot_use_up_the_house_keys_limit(
    settings: Settings,
) -> None:
    changed = settings.model_copy(update={"house_requests_per_minute": 3})
    async with served_gateway(changed) as served:
        poor = await served.tenant("poor")
        async with served.gateway.database.tenant(poor) as session:
            await budgets.set_limit(
                session, poor, window="month", limit_nano=parse_usd("0.0000001")
            )
        async with served.http(await served.key(tenant_id=poor)) as http:
            for _ in range(8):
                assert (await http.post(PATH, json=BODY)).status_code == 402
        async with served.http(await served.key()) as http:
            assert await burst([http], 6) == {200: 3, 429: 3}


async def test_a_refusal_by_the_budget_stays_counted_for_its_tenant(served: Served) -> None:
    await served.budget("0.0000001")
    await limit(served, "requests", 2)
    async with served.http(await served.key()) as http:
        statuses = [(await http.post(PATH, json=BODY)).status_code for _ in range(3)]
    assert statuses == [402, 402, 429]


async def test_an_invalid_request_is_not_counted(served: Served) -> None:
    await limit(served, "requests", 1)
    async with served.http(await served.key()) as http:
        for _ in range(3):
            assert (await http.post(PATH, json=BODY | {"size": "7x7"})).status_code == 400
        assert (await http.post(PATH, json=BODY)).status_code == 200


async def test_a_tenant_at_twenty_times_its_limit_leaves_the_others_alone(served: Served) -> None:
    noisy = await served.tenant("noisy")
    await limit(served, "requests", 20, tenant_id=noisy)
    await limit(served, "concurrent", 5, tenant_id=noisy)
    loud = served.http(await served.key(tenant_id=noisy), limits=httpx2.Limits(max_connections=60))
    calm = [
        served.http(
            await served.key(tenant_id=await served.tenant(f"calm {n}")),
            limits=httpx2.Limits(max_connections=10),
        )
        for n in range(4)
    ]
    shouted, *heard = await asyncio.gather(
        burst([loud], 400), *(burst([client], 100) for client in calm)
    )
    for client in (loud, *calm):
        await client.aclose()
    assert 1 <= shouted[200] <= 20
    assert set(shouted) == {200, 429}
    assert heard == [{200: 100}] * 4


async def test_invalid_limits_are_refused(served: Served) -> None:
    other = await served.tenant("other")
    foreign = await served.key(tenant_id=other)
    wrongs: list[dict[str, Any]] = [
        {"kind": "tokens", "value": 1},
        {"kind": "requests", "value": -1},
        {"kind": "requests", "value": 2**63},
        {"kind": "requests", "value": 1, "api_key_id": foreign.id, "user_id": other},
    ]
    for wrong in wrongs:
        with pytest.raises(InvalidRequest):
            await limit(served, **wrong)
    for owner in ({"api_key_id": foreign.id}, {"user_id": other}):
        with pytest.raises(NotFound):
            await limit(served, "requests", 1, **owner)
    with pytest.raises(NotFound):
        async with served.gateway.database.tenant(served.tenant_id) as session:
            await limit_rows.remove_limit(session, served.tenant_id, 1)


async def test_a_tenant_sees_and_removes_its_own_limits_only(served: Served) -> None:
    other = await served.tenant("other")
    await limit(served, "images", 7, tenant_id=other)
    async with served.gateway.database.tenant(served.tenant_id) as session:
        assert await limit_rows.list_limits(session, other) == []
    [stored] = await stored_limits(served, other)
    with pytest.raises(NotFound):
        async with served.gateway.database.tenant(served.tenant_id) as session:
            await limit_rows.remove_limit(session, other, stored.id)


async def stored_limits(
    served: Served, tenant_id: UUID | None = None
) -> list[limit_rows.StoredLimit]:
    of = tenant_id or served.tenant_id
    async with served.gateway.database.operator() as session:
        return await limit_rows.list_limits(TenantSession(session), of)


async def test_a_repeated_request_is_answered_without_being_counted(
    served: Served, stub: Stub
) -> None:
    await limit(served, "requests", 2)
    once = {"Idempotency-Key": "once"}
    async with served.http(await served.key()) as http:
        answers = [await http.post(PATH, json=BODY, headers=once) for _ in range(5)]
        assert await burst([http], 3) == {200: 1, 429: 2}
    assert {answer.status_code for answer in answers} == {200}
    assert len(stub.bill) == 2
