"""An operator's own host that still serves DALL·E is called for it and priced per image."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fastapi import FastAPI, Request, Response
from PIL import Image

from gateway.catalog.loading import load_catalog
from gateway.errors import ConfigurationError
from tests.harness import Served, error_of, make_settings, served_gateway
from tests.serving import serving
from tests.stub_openai import Stub

BODY = {"model": "dall-e-2", "prompt": "a kite", "size": "512x512"}


@dataclass
class Host:
    """An OpenAI-compatible server of the common kind: it answers with links only."""

    base_url: str = ""
    calls: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    link: str = ""
    extra: dict[str, object] = field(default_factory=dict)


def image_bytes(width: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, width), "teal").save(out, "PNG")
    return out.getvalue()


@asynccontextmanager
async def running_host() -> AsyncIterator[Host]:
    host, app = Host(), FastAPI()

    @app.post("/v1/images/generations")
    async def generations(request: Request) -> dict[str, object]:
        body = await request.json()
        host.calls.append(("generations", body))
        link = host.link or host.base_url.removesuffix("/v1") + "/made/512.png"
        revised = {"revised_prompt": "as seen"} if body["model"] == "dall-e-3" else {}
        return {"created": 1, "data": [{"url": link, **revised}] * body["n"], **host.extra}

    @app.post("/v1/images/variations")
    async def variations(request: Request) -> dict[str, object]:
        form = await request.form()
        host.calls.append(
            ("variations", {name: str(form[name]) for name in form if name != "image"})
        )
        return {
            "created": 1,
            "data": [{"url": host.base_url.removesuffix("/v1") + "/made/256.png"}],
        }

    @app.get("/made/{width}.png")
    async def made(width: int) -> Response:
        return Response(image_bytes(width), media_type="image/png")

    async with serving(app) as address:
        host.base_url = f"{address}/v1"
        yield host


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with running_host() as running:
        yield running


@pytest.fixture
async def hosting(database: str, stub: Stub, host: Host, tmp_path: Path) -> AsyncIterator[Served]:
    settings = make_settings(
        database,
        tmp_path,
        OPENAI_BASE_URL=stub.base_url,
        legacy_base_url=host.base_url,
        legacy_models="dall-e-2, dall-e-3",
    )
    async with served_gateway(settings) as running:
        yield running
        await running.check_invariants()


async def test_its_models_are_called_there_and_cost_what_an_image_costs(
    hosting: Served, host: Host, stub: Stub
) -> None:
    async with hosting.http(await hosting.key()) as http:
        quote = await http.post("/v1/images/quotes", json=BODY | {"n": 2})
        response = await http.post(
            "/v1/images/generations", json=BODY | {"n": 2, "response_format": "b64_json"}
        )
        links = await http.post("/v1/images/generations", json=BODY)
        link = links.json()["data"][0]["url"]
        fetched = await http.get(link.removeprefix(hosting.gateway.settings.public_url))
    assert quote.json()["cost_usd_max"] == "0.036"
    assert response.headers["x-gateway-cost-usd"] == "0.036000000"
    assert response.headers["x-gateway-cost-status"] == "actual"
    assert response.headers["x-gateway-served-model"] == "dall-e-2"
    assert [sorted(item) for item in response.json()["data"]] == [["b64_json"], ["b64_json"]]
    assert fetched.content == image_bytes(512)
    assert host.calls[0] == (
        "generations",
        {**BODY, "n": 2, "response_format": "b64_json"},
    )
    assert stub.calls == []
    assert await hosting.ledger_total() == 54_000_000


async def test_a_prompt_that_it_revised_comes_back_as_it_revised_it(hosting: Served) -> None:
    body = {"model": "dall-e-3", "prompt": "a kite", "quality": "hd", "style": "natural"}
    async with hosting.http(await hosting.key()) as http:
        response = await http.post("/v1/images/generations", json=body)
    assert [item["revised_prompt"] for item in response.json()["data"]] == ["as seen"]
    assert response.headers["x-gateway-cost-usd"] == "0.080000000"


async def test_variations_go_there_as_variations(hosting: Served, host: Host) -> None:
    async with hosting.openai(await hosting.key()) as client:
        answer = await client.images.create_variation(
            image=("in.png", image_bytes(64), "image/png"), n=1, size="256x256"
        )
    assert answer.data is not None
    assert answer.data[0].url is not None
    assert host.calls == [
        (
            "variations",
            {"model": "dall-e-2", "n": "1", "size": "256x256", "response_format": "b64_json"},
        )
    ]


async def test_test_keys_are_drawn_for_in_the_sandbox_all_the_same(
    hosting: Served, host: Host
) -> None:
    async with hosting.http(await hosting.key(livemode=False)) as http:
        response = await http.post("/v1/images/generations", json=BODY)
    assert response.status_code == 200
    assert host.calls == []


async def test_a_link_that_leads_inside_is_not_followed(hosting: Served, host: Host) -> None:
    host.link = "http://127.0.0.1:1/secret"
    async with hosting.http(await hosting.key()) as http:
        response = await http.post("/v1/images/generations", json=BODY)
    assert (response.status_code, error_of(response)["code"]) == (504, "outcome_unknown")
    rows = await hosting.owner_sql("SELECT state FROM reservation")
    assert [row.state for row in rows] == ["unknown"]


async def test_a_charged_call_without_its_images_costs_what_the_images_cost(
    hosting: Served, host: Host
) -> None:
    host.link = "http://127.0.0.1:1/secret"
    host.extra = {"usage": {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}}
    async with hosting.http(await hosting.key()) as http:
        response = await http.post("/v1/images/generations", json=BODY | {"n": 2})
    assert (response.status_code, error_of(response)["code"]) == (500, "image_unfinished")
    rows = await hosting.owner_sql("SELECT state, final_nano FROM reservation")
    assert [(row.state, row.final_nano) for row in rows] == [("posted", 36_000_000)]


async def test_a_host_without_models_or_an_unknown_one_refuses_to_boot(
    database: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="GATEWAY_LEGACY_MODELS"):
        make_settings(database, tmp_path, legacy_base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigurationError, match="GATEWAY_LEGACY_MODELS"):
        load_catalog(hosted=["dall-e-4"])


def test_every_successor_takes_as_many_images_as_the_model_it_stands_for() -> None:
    models = load_catalog().models
    for model in models.values():
        if model.successor is not None:
            assert models[model.successor].max_images >= model.max_images
