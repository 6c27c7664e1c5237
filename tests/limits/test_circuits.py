"""A circuit pauses calls to a failing provider, at no cost and without harm to other tenants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from structlog.testing import capture_logs

from gateway.config import Settings
from tests.admin_helpers import answered
from tests.harness import HOUSE_KEY, Served, error_of, free_port, served_gateway
from tests.limits_helpers import limit
from tests.mcp_helpers import MODES, post, tool_message
from tests.money_helpers import count_states, eventually, image_body, post_image
from tests.stub_openai import Fault, Stub

FAILURES = 10
OWN_KEY = "sk-own-canary-19c2b7"
OTHER_MODEL = "gpt-image-1.5"


@asynccontextmanager
async def impatient_gateway(settings: Settings, **changes: object) -> AsyncIterator[Served]:
    """A gateway that soon tries open circuits again; the invariants are checked at the end."""
    values = {"circuit_open_seconds": 0.3, "circuit_max_open_seconds": 0.6} | changes
    async with served_gateway(settings.model_copy(update=values)) as served:
        yield served
        await served.check_invariants()


def said(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, str(error_of(answer)["code"])


async def fail(http: httpx2.AsyncClient, times: int, **body: str) -> set[tuple[int, str]]:
    """Send `times` requests in a row; the set of their answers."""
    return {said(await post_image(http, **body)) for _ in range(times)}


async def until_served(http: httpx2.AsyncClient) -> None:
    async def served() -> bool:
        return (await post_image(http)).status_code == 200

    await eventually(served)


async def test_a_provider_that_keeps_failing_is_not_called_and_nothing_is_held(
    served: Served, stub: Stub
) -> None:
    await limit(served, "requests", 100)
    stub.faults.add(Fault("status", status=500, times=None))
    async with served.http(await served.key()) as http:
        assert await fail(http, FAILURES) == {(504, "outcome_unknown")}
        refused = await post_image(http)
        stub.faults.clear()
        # Another model is another matter.
        other = await post_image(http, model=OTHER_MODEL)
    assert said(refused) == (503, "provider_unavailable")
    assert 1 <= int(refused.headers["Retry-After"]) <= 10
    assert other.status_code == 200
    assert other.headers["X-RateLimit-Remaining-Requests"] == str(100 - FAILURES - 1)
    assert len(stub.calls) == FAILURES + 1
    assert await count_states(served) == {"unknown": FAILURES, "posted": 1}


async def test_it_is_tried_again_and_served_as_soon_as_it_has_recovered(
    settings: Settings, stub: Stub
) -> None:
    async with impatient_gateway(settings) as served:
        stub.faults.add(Fault("status", status=503, times=FAILURES + 1))
        async with served.http(await served.key()) as http:
            with capture_logs() as lines:
                assert await fail(http, FAILURES) == {(504, "outcome_unknown")}
                await until_served(http)
            # One probe met the last failure; the next one closed the circuit.
            assert len(stub.calls) == FAILURES + 2
            answers = await asyncio.gather(*(post_image(http) for _ in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        changes = [line["event"] for line in lines if line["event"].startswith("circuit_")]
        once = ["circuit_open", "circuit_half_open"]
        assert changes == [*once, *once, "circuit_closed"]
        assert HOUSE_KEY not in str(lines)


async def test_a_provider_that_cannot_be_reached_opens_it_at_no_cost(
    settings: Settings,
) -> None:
    nowhere = {"openai_base_url": f"http://127.0.0.1:{free_port()}/v1"}
    async with impatient_gateway(settings, circuit_open_seconds=60, **nowhere) as served:
        async with served.http(await served.key()) as http:
            assert await fail(http, FAILURES) == {(502, "provider_unreachable")}
            assert await fail(http, 2) == {(503, "provider_unavailable")}
        assert await count_states(served) == {"void": FAILURES}


async def test_one_tenants_failures_close_the_house_key_to_no_other_tenant(
    served: Served, stub: Stub
) -> None:
    other = await served.key(tenant_id=await served.tenant("other"))
    third = await served.key(tenant_id=await served.tenant("third"))
    stub.faults.add(Fault("status", status=500, times=None, prompt_contains="slow"))
    async with (
        served.http(await served.key()) as http,
        served.http(other) as calm,
        served.http(third) as guest,
    ):
        assert await fail(http, FAILURES, prompt="slow") == {(504, "outcome_unknown")}
        assert await fail(http, 1, prompt="quick") == {(503, "provider_unavailable")}
        assert (await post_image(calm)).status_code == 200
        # Several tenants see it fail, so it is the provider: the circuit opens for all.
        await fail(calm, FAILURES - 2, prompt="slow")
        assert await fail(guest, 2, prompt="slow") == {(504, "outcome_unknown")}
        assert await fail(guest, 1, prompt="quick") == {(503, "provider_unavailable")}


async def test_a_refusal_by_the_provider_closes_the_house_key_to_no_other_tenant(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault("status", status=403, times=None, prompt_contains="forbidden"))
    other = await served.key(tenant_id=await served.tenant("other"))
    async with served.http(await served.key()) as http, served.http(other) as calm:
        await fail(http, FAILURES, prompt="forbidden")
        assert (await post_image(calm)).status_code == 200


async def test_a_tenants_own_bad_key_is_reported_until_it_is_replaced(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault("status", status=401, times=None, key=OWN_KEY))
    key = await served.key()
    other = await served.key(tenant_id=await served.tenant("other"))
    async with served.http(key) as http, served.http(other) as calm:
        path = "/v1/credentials/openai"
        assert (await http.put(path, json={"secret": OWN_KEY})).status_code == 200
        assert await fail(http, FAILURES + 3) == {(424, "credential_rejected")}
        assert len(stub.calls) == FAILURES
        assert (await post_image(calm)).status_code == 200
        assert (await http.put(path, json={"secret": f"{OWN_KEY}-new"})).status_code == 200
        assert (await post_image(http)).status_code == 200


@pytest.mark.parametrize("preset", [None, "insufficient_quota"])
async def test_trouble_with_the_house_key_is_not_disclosed_and_costs_few_calls(
    served: Served, stub: Stub, preset: str | None
) -> None:
    stub.faults.add(Fault("status", status=401, preset=preset, times=None))
    async with served.http(await served.key()) as http:
        answers = [await post_image(http) for _ in range(FAILURES + 3)]
    assert {said(answer) for answer in answers} == {(503, "provider_unavailable")}
    assert len(stub.calls) == FAILURES
    for answer in answers:
        assert "key" not in answer.text
        assert "quota" not in answer.text
        assert answer.headers["Retry-After"]
    assert await count_states(served) == {"void": FAILURES}


async def test_a_providers_rate_limit_is_kept_for_as_long_as_it_has_said(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault("status", status=429, retry_after="7", times=3))
    other = await served.key(tenant_id=await served.tenant("other"))
    third = await served.key(tenant_id=await served.tenant("third"))
    async with (
        served.http(await served.key()) as http,
        served.http(other) as guest,
        served.http(third) as newcomer,
    ):
        told = [await post_image(http) for _ in range(3)]
        assert len(stub.calls) == 2  # of his own he is told after two
        told += [await post_image(guest), await post_image(newcomer)]
        assert (await post_image(http, model=OTHER_MODEL)).status_code == 200
    assert {said(answer) for answer in told} == {(429, "rate_limit_exceeded")}
    assert [1 <= int(answer.headers["Retry-After"]) <= 7 for answer in told] == [True] * 5
    assert len(stub.calls) == 4  # two tenants have heard it: the third is told at once


async def test_rate_limits_of_two_tenants_delay_no_tenant_while_a_third_is_served(
    served: Served, stub: Stub
) -> None:
    other, third, newcomer = [
        await served.key(tenant_id=await served.tenant(name)) for name in ("b", "c", "d")
    ]
    stub.faults.add(
        Fault("status", status=429, retry_after="7", times=None, prompt_contains="limited")
    )
    async with (
        served.http(await served.key()) as http,
        served.http(other) as guest,
        served.http(third) as healthy,
        served.http(newcomer) as fresh,
    ):
        assert (await post_image(healthy)).status_code == 200
        for limited in (http, guest):
            assert await fail(limited, 1, prompt="limited") == {(429, "rate_limit_exceeded")}
        for untroubled in (healthy, fresh):
            assert (await post_image(untroubled)).status_code == 200
        # The limit is the whole key's: those that were served hear it once, and all wait.
        for tenant in (healthy, fresh):
            assert await fail(tenant, 1, prompt="limited") == {(429, "rate_limit_exceeded")}
        bought = len(stub.calls)
        for tenant in (healthy, fresh, http, guest):
            assert await fail(tenant, 1) == {(429, "rate_limit_exceeded")}
    assert len(stub.calls) == bought


async def test_rate_limits_of_a_tenants_own_key_delay_no_other_tenant(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault("status", status=429, retry_after="7", times=None, key=OWN_KEY))
    for name in ("limited", "limited too"):
        key = await served.key(tenant_id=await served.tenant(name))
        async with served.http(key) as http:
            # The same text: what tells credentials apart is whose they are.
            answered(await http.put("/v1/credentials/openai", json={"secret": OWN_KEY}))
            assert await fail(http, FAILURES + 3) == {(429, "rate_limit_exceeded")}
    assert len(stub.calls) == 4  # each was told twice, and then put off
    with_own = await served.key(tenant_id=await served.tenant("other"))
    async with served.http(await served.key()) as http, served.http(with_own) as calm:
        secret = {"secret": f"{OWN_KEY}-of-other"}
        answered(await calm.put("/v1/credentials/openai", json=secret))
        for untroubled in (http, calm):
            assert (await post_image(untroubled)).status_code == 200


async def test_an_invalid_request_does_not_count_against_the_provider(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(
        Fault("status", preset="moderation_blocked", times=FAILURES),
        Fault("status", status=400, times=FAILURES),
    )
    async with served.http(await served.key()) as http:
        for _ in range(2 * FAILURES):
            assert (await post_image(http)).status_code == 400
        assert (await post_image(http)).status_code == 200


async def test_a_sandbox_that_fails_on_demand_goes_on_doing_so(served: Served) -> None:
    async with served.http(await served.key(livemode=False)) as http:
        answers = [await post_image(http, "[sandbox:unknown]") for _ in range(FAILURES + 2)]
    assert {said(answer) for answer in answers} == {(504, "outcome_unknown")}


async def test_a_probe_that_a_budget_refuses_leaves_its_turn_to_the_next_call(
    settings: Settings, stub: Stub
) -> None:
    async with impatient_gateway(settings) as served:
        stub.faults.add(Fault("status", status=500, times=FAILURES))
        poor = await served.key()
        await served.budget("0.000001", api_key_id=poor.id)
        async with served.http(await served.key()) as http, served.http(poor) as empty:
            await fail(http, FAILURES)

            async def refused_by_budget() -> bool:
                return (await post_image(empty)).status_code == 402

            await eventually(refused_by_budget)
            assert (await post_image(http)).status_code == 200


@pytest.mark.parametrize("mode", MODES)
async def test_an_agent_is_told_to_try_another_model(served: Served, stub: Stub, mode: str) -> None:
    stub.faults.add(Fault("status", status=500, times=None))
    paint = tool_message("generate_image", mode, **image_body())
    async with served.http(await served.key()) as http:
        await fail(http, FAILURES)
        result = (await post(http, paint)).result
    assert result["isError"]
    assert result["_meta"]["error"]["code"] == "provider_unavailable"
    assert "list_available_models" in result["content"][0]["text"]
    assert len(stub.calls) == FAILURES
