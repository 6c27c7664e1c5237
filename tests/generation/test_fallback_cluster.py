"""Fallback that ends on the operator's own cluster, and under the operator's own budget."""

import asyncio
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr

from gateway.config import Settings
from gateway.money import format_usd
from tests.harness import GPT2, Served, error_of, make_settings, served_gateway
from tests.image_helpers import load_base64
from tests.models_files import SIX, write
from tests.money.test_money_crashes import locked
from tests.money_helpers import books, budget_rows, eventually, image_body, until_states
from tests.stub_gemini import StubGemini
from tests.stub_gemini.api import KEY
from tests.stub_kserve import StubKServe
from tests.stub_openai import Fault, Stub

BANANA, OWN = "gemini-nano-banana-2.1", "sd-demo"
PATH = "/v1/images/generations"
BODY = image_body(size="1024x1024")
CHAIN = f"""
[[fallbacks]]
model = "{GPT2}"
to = ["{BANANA}", "{OWN}"]
"""
LIMITED = Fault("status", preset="rate_limited", times=None)
END_MOVES = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND datname = current_database()
    AND query LIKE '%reroute_reservation%'
"""


@pytest.fixture
def settings(
    database: str, stub: Stub, gemini: StubGemini, kserve: StubKServe, tmp_path: Path
) -> Settings:
    return make_settings(
        database,
        tmp_path,
        OPENAI_BASE_URL=stub.base_url,
        GEMINI_API_KEY=SecretStr(KEY),
        GEMINI_BASE_URL=gemini.base_url,
        models_file=write(tmp_path, SIX + CHAIN, kserve.base_url),
        provider_read_timeout_seconds=2,
        admission_timeout_ms=60_000,
    )


async def house_sums(served: Served) -> tuple[int, int]:
    """Spent and held of the house budget, in nano-USD."""
    [(owner, _, spent_nano, held_nano)] = await budget_rows(served)
    assert owner == "house"
    return spent_nano, held_nano


async def buy(served: Served, model: str = GPT2) -> httpx2.Response:
    async with served.http(await served.key()) as http:
        return await http.post(PATH, json=BODY | {"model": model})


async def test_a_chain_ends_on_the_operators_own_cluster(
    served: Served, stub: Stub, gemini: StubGemini, kserve: StubKServe
) -> None:
    stub.faults.add(LIMITED)
    gemini.faults.append("denied")
    answer = await buy(served)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-gateway-provider"] == "cluster"
    assert answer.headers["x-gateway-served-model"] == OWN
    assert load_base64(answer.json()["data"][0]["b64_json"]).size == (1024, 1024)
    [line] = kserve.bill
    assert answer.headers["x-gateway-cost-usd"] == format_usd(line.cost_nano_usd)
    assert (len(stub.calls), len(gemini.calls), len(kserve.calls)) == (1, 1, 1)
    [booked] = await books(served)
    assert booked.lines == (("post", line.cost_nano_usd),)


async def test_a_cluster_that_is_away_ends_the_chain_with_the_first_error(
    served: Served, stub: Stub, gemini: StubGemini, kserve: StubKServe
) -> None:
    stub.faults.add(LIMITED)
    gemini.faults.append("denied")
    kserve.keys.clear()
    answer = await buy(served)
    assert (answer.status_code, error_of(answer)["code"]) == (429, "rate_limit_exceeded")
    assert (kserve.bill, gemini.bill) == ([], [])
    [booked] = await books(served)
    assert (booked.state, booked.lines) == ("void", (("void", 0),))


async def test_a_chain_holds_its_dearest_model_of_the_house_budget_and_spends_what_was_bought(
    served: Served, stub: Stub, gemini: StubGemini, kserve: StubKServe
) -> None:
    await served.house_budget("5")
    stub.faults.add(LIMITED)
    gemini.faults.append("denied")
    assert (await buy(served)).headers["x-gateway-provider"] == "cluster"
    [line] = kserve.bill
    assert await house_sums(served) == (line.cost_nano_usd, 0)


async def test_a_short_budget_of_the_tenant_asks_all_shards_of_the_house(
    served: Served, stub: Stub
) -> None:
    await served.house_budget("5")
    await served.budget("0.02")
    # No shard has its part yet: alone, none knows that the house has enough.
    assert (await buy(served)).headers["x-gateway-provider"] == "openai"
    assert await served.owner_sql("SELECT exceeded_of_nano FROM budget_period") == [(None,)]
    await served.check_invariants()


async def test_a_house_budget_too_small_for_the_dearest_model_passes_over_it(
    served: Served, stub: Stub, gemini: StubGemini, kserve: StubKServe
) -> None:
    await served.house_budget("0.02")
    assert (await buy(served)).headers["x-gateway-provider"] == "openai"
    spent_nano = stub.totals.cost_nano_usd
    assert await house_sums(served) == (spent_nano, 0)
    stub.faults.add(LIMITED)
    assert (await buy(served)).headers["x-gateway-provider"] == "cluster"
    assert gemini.calls == []
    [line] = kserve.bill
    assert await house_sums(served) == (spent_nano + line.cost_nano_usd, 0)


async def test_a_vendor_at_its_limit_is_passed_over(
    settings: Settings, stub: Stub, gemini: StubGemini, kserve: StubKServe
) -> None:
    once = settings.model_copy(update={"house_requests_per_minute": 1})
    async with served_gateway(once) as served:
        assert (await buy(served, BANANA)).status_code == 200
        stub.faults.add(LIMITED)
        answer = await buy(served)
        assert answer.headers["x-gateway-provider"] == "cluster"
        assert (len(stub.calls), len(gemini.calls), len(kserve.calls)) == (1, 1, 1)
        await served.check_invariants()


async def test_a_vendor_without_a_key_is_passed_over(
    settings: Settings, stub: Stub, gemini: StubGemini
) -> None:
    keyless = settings.model_copy(update={"gemini_api_key": None})
    async with served_gateway(keyless) as served:
        stub.faults.add(LIMITED)
        assert (await buy(served)).headers["x-gateway-provider"] == "cluster"
        assert gemini.calls == []
        await served.check_invariants()


async def test_a_call_that_cannot_be_moved_is_not_made(
    served: Served, stub: Stub, gemini: StubGemini, kserve: StubKServe
) -> None:
    stub.faults.add(Fault("status", preset="rate_limited", hold=True))
    buying = asyncio.create_task(buy(served))
    await stub.until_held(1)

    async def connection_lost() -> bool:
        return bool(await served.owner_sql(END_MOVES))

    async with locked(served.gateway.settings, "LOCK TABLE reservation IN ACCESS EXCLUSIVE MODE"):
        stub.release()
        await eventually(connection_lost)
    answer = await buying
    assert (answer.status_code, error_of(answer)["code"]) == (429, "rate_limit_exceeded")
    await until_states(served, {"void": 1})
    assert (gemini.calls, kserve.calls) == ([], [])
    [booked] = await books(served)
    assert (booked.state, booked.lines) == ("void", (("void", 0),))


async def test_a_gateway_that_shuts_down_begins_no_call_of_a_fallback(
    served: Served, stub: Stub, gemini: StubGemini
) -> None:
    stub.faults.add(Fault("status", preset="rate_limited", hold=True))
    buying = asyncio.create_task(buy(served))
    await stub.until_held(1)
    draining = asyncio.create_task(served.gateway.pipeline.drain(60))
    await asyncio.sleep(0)
    stub.release()
    answer = await buying
    # Another gateway serves a repetition at once; the first error asked for 12 seconds.
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "shutting down" in answer.text
    await draining
    assert gemini.calls == []
    [row] = await served.owner_sql("SELECT state, served_model, final_nano FROM reservation")
    assert tuple(row) == ("void", GPT2, 0)
