"""The list of models tells what each costs now: exact, per unit, the operator's own included."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gateway.billing import prices
from gateway.config import Settings
from gateway.image_models import SeedPrice
from tests.admin_helpers import admin
from tests.harness import GPT2, Served, error_of, make_settings
from tests.models_files import SIX, write
from tests.stub_openai import Stub

NONE: dict[str, Any] = dict.fromkeys(
    (
        *("text_input_usd", "image_input_usd", "text_output_usd", "image_output_usd"),
        *("per_image_usd", "by_size_usd", "per_second_usd"),
    )
)


@pytest.fixture
def settings(
    database: str, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    monkeypatch.setenv("CLUSTER_TOKEN", "not used")
    return make_settings(
        database,
        tmp_path,
        OPENAI_BASE_URL=stub.base_url,
        models_file=write(tmp_path, SIX),
        legacy_base_url="http://127.0.0.1:9/v1",
        legacy_models="dall-e-2",
        GEMINI_API_KEY=SecretStr("AIza-not-used"),
    )


async def listed(served: Served) -> dict[str, dict[str, Any]]:
    async with served.http(await served.key()) as http:
        models = (await http.get("/v1/models")).json()["data"]
        one = (await http.get(f"/v1/models/{GPT2}")).json()
    found = {model["id"]: model for model in models}
    assert found[GPT2] == one
    return found


async def test_every_model_names_its_price_in_its_unit(served: Served) -> None:
    models = await listed(served)
    priced = {name: model["price"] for name, model in models.items()}
    assert None not in priced.values()
    assert priced["gemini-nano-banana-2.1"] == NONE | {
        "unit": "token",
        "text_input_usd": "1.50",
        "image_input_usd": "1.50",
        "text_output_usd": "7.50",
        "image_output_usd": "30.00",
    }
    assert priced["sd-demo"] == NONE | {"unit": "image", "per_image_usd": "0.002"}
    assert priced["sd-by-second"] == NONE | {"unit": "second", "per_second_usd": "0.001"}
    by_size = {"256x256": "0.016", "512x512": "0.018", "1024x1024": "0.02"}
    assert priced["dall-e-2"] == NONE | {"unit": "image", "by_size_usd": by_size}
    for model in models.values():
        assert model["price"] == priced[model["served_model"]], model["id"]


async def test_a_new_price_is_listed_from_its_start(served: Served) -> None:
    before = (await listed(served))[GPT2]["price"]
    rates = SeedPrice(1, 7_000_000_000, 29_123_456_789, 3_000_000_000)
    async with served.gateway.database.operator() as session:
        await prices.add(session, GPT2, rates, effective_from=datetime.now(UTC))
    while (now := (await listed(served))[GPT2]["price"]) == before:  # until it is announced
        pass
    assert now == NONE | {
        "unit": "token",
        "text_input_usd": "0.000000001",
        "image_input_usd": "7.00",
        "text_output_usd": "3.00",
        "image_output_usd": "29.123456789",
    }


async def test_operators_see_all_models_whichever_a_key_may_use(served: Served) -> None:
    names = set(served.gateway.core.catalog.models)
    async with admin(served) as http:
        models = (await http.get("/models")).json()["data"]
        one = (await http.get(f"/models/{GPT2}")).json()
        refused = await http.get("/models/none")
    found = {model["id"]: model for model in models}
    assert set(found) == names
    assert found[GPT2] == one == (await listed(served))[GPT2]
    assert (refused.status_code, error_of(refused)["code"]) == (404, "model_not_found")
    async with served.http(await served.key()) as http:
        assert (await http.get("/admin/v1/models")).status_code == 403
