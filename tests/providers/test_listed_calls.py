"""The provider calls of a generation: listed under its one ledger entry, wherever it is shown."""

import asyncio
import csv
import io
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gateway.config import Settings
from tests.harness import GPT2, Served, make_settings
from tests.money.test_archive import command
from tests.money_helpers import books, image_body
from tests.providers.test_gemini import rerouted
from tests.stub_gemini import StubGemini
from tests.stub_gemini.api import KEY
from tests.stub_openai import Fault, Stub

BANANA = "gemini-nano-banana-2.1"
PATH = "/v1/images/generations"


@pytest.fixture
def settings(database: str, stub: Stub, gemini: StubGemini, tmp_path: Path) -> Settings:
    chain = tmp_path / "models.toml"
    chain.write_text(f'[[fallbacks]]\nmodel = "{GPT2}"\nto = ["{BANANA}"]\n')
    return make_settings(
        database,
        tmp_path,
        OPENAI_BASE_URL=stub.base_url,
        GEMINI_API_KEY=SecretStr(KEY),
        GEMINI_BASE_URL=gemini.base_url,
        models_file=chain,
    )


async def generation_of(served: Served, request_id: str) -> dict[str, Any]:
    await served.gateway.request_log.flush()
    async with served.http(await served.key()) as http:
        found: dict[str, Any] = (await http.get(f"/v1/requests/{request_id}")).json()
    return found


async def test_several_calls_are_one_entry_that_lists_them_wherever_it_is_shown(
    served: Served, gemini: StubGemini
) -> None:
    gemini.faults += ["", "refused_image", "other_version", "invalid"]
    before = rerouted()
    async with served.http(await served.key()) as http:
        answer = await http.post(PATH, json=image_body(model=BANANA) | {"n": 4})
        [image, _] = (await http.get("/v1/images")).json()["data"]
        shown = (await http.get(f"/v1/images/{image['id']}")).json()["generation"]
    assert len(answer.json()["data"]) == 2
    assert rerouted() == before + 1
    [booked] = await books(served)
    assert [line[0] for line in booked.lines] == ["post"]
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in gemini.bill)

    logged = await generation_of(served, answer.headers["x-request-id"])
    generation = logged["generation"]
    calls = generation["calls"]
    assert {(one["provider"], one["model"]) for one in calls} == {("gemini", BANANA)}
    assert Counter((one["outcome"], one["provider_status"], one["images"]) for one in calls) == {
        ("success", 200, 1): 2,
        ("refused_charged", 200, 0): 1,
        ("rejected", 400, 0): 1,
    }
    versions = {one["model_version"] for one in calls if one["outcome"] == "success"}
    assert versions == {BANANA, "gemini-of-another-kind"}
    ids = {one["provider_request_id"] for one in calls if one["outcome"] != "rejected"}
    assert len(ids) == 3
    posted = generation["ledger"][-1]
    for kind in ("input_tokens", "output_tokens", "images"):
        assert sum(one[kind] or 0 for one in calls) == posted[kind]
    assert logged["provider_calls"] == generation["provider_calls"] == shown["provider_calls"] == 4
    assert shown["model_version"] == generation["model_version"] in versions

    call = generation["id"]
    _, out, _ = await command(served, "reconcile", "show", call, "--json")
    assert json.loads(out)["calls"] == calls
    _, out, _ = await command(served, "requests", "show", call)
    assert out.count("gemini-nano-banana-2.1") >= 4
    assert all(name in out for name in ids)
    _, out, _ = await command(served, "ledger", "export", f"{datetime.now(UTC):%Y-%m}")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["kind"] for row in rows] == ["hold", "post"]
    assert {
        (row["provider"], row["credential"], row["provider_calls"], row["model_version"])
        for row in rows
    } == {("gemini", "house", "4", shown["model_version"])}


async def test_the_calls_of_a_fallback_are_listed_with_those_that_were_refused(
    served: Served, stub: Stub, gemini: StubGemini
) -> None:
    stub.faults.add(Fault("status", preset="rate_limited"))
    async with served.http(await served.key()) as http:
        answer = await http.post(PATH, json=image_body())
    logged = await generation_of(served, answer.headers["x-request-id"])
    generation = logged["generation"]
    refused, made = generation["calls"]
    assert (refused["provider"], refused["model"], refused["outcome"]) == (
        *("openai", GPT2),
        "rejected",
    )
    assert (refused["provider_status"], refused["images"]) == (429, 0)
    assert (made["provider"], made["model"], made["outcome"]) == ("gemini", BANANA, "success")
    assert (logged["provider_calls"], generation["provider_calls"]) == (2, 2)
    assert generation["model_version"] == BANANA


async def test_calls_of_unknown_outcome_are_listed_too(
    served: Served, stub: Stub, gemini: StubGemini
) -> None:
    stub.faults.add(Fault("status", preset="rate_limited"))
    gemini.faults += ["reset"]
    async with served.http(await served.key()) as http:
        answer = await http.post(PATH, json=image_body())
        assert answer.status_code == 504
        gone = await http.post(PATH, json=image_body(model=BANANA) | {"n": 0})
    generation = (await generation_of(served, answer.headers["x-request-id"]))["generation"]
    assert (generation["state"], generation["provider_calls"]) == ("unknown", 2)
    assert [one["outcome"] for one in generation["calls"]] == ["rejected", "ambiguous"]
    assert generation["calls"][1]["provider_status"] is None
    assert (await generation_of(served, gone.headers["x-request-id"]))["generation"] is None


async def test_a_call_under_way_is_not_listed_yet(served: Served, gemini: StubGemini) -> None:
    gemini.held.clear()
    async with served.http(await served.key()) as http:
        buying = asyncio.create_task(http.post(PATH, json=image_body(model=BANANA)))
        await gemini.arrived.acquire()
        [held] = await served.owner_sql("SELECT id FROM reservation")
        _, out, _ = await command(served, "reconcile", "show", str(held.id), "--json")
        gemini.held.set()
        assert (await buying).status_code == 200
    found = json.loads(out)
    assert (found["state"], found["calls"], found["provider_calls"]) == ("held", None, None)
