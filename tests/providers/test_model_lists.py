"""`gateway doctor` compares each vendor's own list of models, which is free, with the catalogue."""

import json
from datetime import date
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.config import Settings
from gateway.generation.model_lifetimes import ListedModels
from gateway.providers.base import Reason
from tests.harness import GPT2, Served, make_settings, served_gateway
from tests.money.test_archive import command
from tests.stub_gemini import StubGemini
from tests.stub_gemini.api import KEY
from tests.stub_gemini.api import MODELS as GOOGLES
from tests.stub_openai import Stub

FLASH = "gemini-3.1-flash-image"


@pytest.fixture
def settings(database: str, stub: Stub, gemini: StubGemini, tmp_path: Path) -> Settings:
    return make_settings(
        database,
        tmp_path,
        OPENAI_BASE_URL=stub.base_url,
        GEMINI_API_KEY=SecretStr(KEY),
        GEMINI_BASE_URL=gemini.base_url,
    )


async def examined(served: Served, gemini: StubGemini) -> dict[str, tuple[str, str]]:
    """The state and the words of each check."""
    google = {"GEMINI_API_KEY": KEY, "GEMINI_BASE_URL": gemini.base_url}
    _, out, _ = await command(served, "doctor", "--json", **google)
    return {one["check"]: (one["state"], one["detail"]) for one in json.loads(out)}


async def test_a_model_that_its_vendor_does_not_list_is_named(
    served: Served, stub: Stub, gemini: StubGemini
) -> None:
    gemini.unlisted.add(FLASH)
    found = await examined(served, gemini)
    state, told = found["gemini key"]
    assert (state, told) == ("missing", f"model not listed by {gemini.base_url}: {FLASH}")
    state, told = found["openai key"]
    assert state == "ok"
    assert told.startswith(f"{stub.base_url} lists all ")
    assert (gemini.calls, gemini.bill, stub.bill) == ([], [], [])


async def test_models_that_are_shut_down_need_no_longer_be_listed(
    settings: Settings, stub: Stub, gemini: StubGemini
) -> None:
    async with served_gateway(settings, today=lambda: date(2026, 11, 30)) as served:
        compare = served.gateway.lifetimes.compare
        found = await compare("gemini")
        assert found is not None
        assert (set(found.models), found.missing, found.failure) == (set(GOOGLES), (), None)
        openais = await compare("openai")
        assert openais is not None
        assert GPT2 in openais.models
        assert "dall-e-3" not in openais.models
        assert openais.missing == ()


@pytest.mark.parametrize(
    ("size", "made"),
    [
        *(("512x512", "1024x1024"), ("1000x1000", "1024x1024"), (None, "1024x1024")),
        ("2000x2000", "2048x2048"),
    ],
)
async def test_a_successor_without_a_size_makes_the_nearest(
    settings: Settings, gemini: StubGemini, size: str | None, made: str
) -> None:
    async with served_gateway(settings) as served:
        served.gateway.core.catalog.learn_shutdown_dates({FLASH: date(2026, 11, 1)})
        async with served.http(await served.key()) as http:
            asked = {"model": FLASH, "prompt": "a red circle"} | ({"size": size} if size else {})
            answer = await http.post("/v1/images/generations", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-gateway-served-model"] == "gemini-nano-banana-2.1"
    assert answer.json()["size"] == made
    assert len(gemini.bill) == 1


async def test_a_refused_key_and_a_broken_list_are_told_apart(
    settings: Settings, gemini: StubGemini
) -> None:
    gemini.keys.clear()
    changed = settings.model_copy(update={"openai_base_url": "http://127.0.0.1:9/v1"})
    async with served_gateway(changed) as served:
        compare = served.gateway.lifetimes.compare
        assert await compare("gemini") == ListedModels((), (), Reason.CREDENTIAL)
        assert await compare("openai") == ListedModels((), (), Reason.UNREACHABLE)
        without = settings.model_copy(update={"gemini_api_key": None})
    async with served_gateway(without) as served:
        assert await served.gateway.lifetimes.compare("gemini") is None
