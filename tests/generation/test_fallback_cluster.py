"""Fallback that ends on the operator's own cluster, and under the operator's own budget."""

from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr

from gateway.config import Settings
from gateway.money import format_usd
from tests.harness import GPT2, Served, error_of, make_settings
from tests.image_helpers import load_base64
from tests.models_files import SIX, write
from tests.money_helpers import books, budget_rows, image_body
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
    )


async def house_sums(served: Served) -> tuple[int, int]:
    """Spent and held of the house budget, in nano-USD."""
    [(owner, _, spent_nano, held_nano)] = await budget_rows(served)
    assert owner == "house"
    return spent_nano, held_nano


async def buy(served: Served) -> httpx2.Response:
    async with served.http(await served.key()) as http:
        return await http.post(PATH, json=BODY)


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
