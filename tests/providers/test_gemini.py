"""Gemini through REST, streams and MCP: the requests, their costs, and what each failure means."""

import asyncio
import base64
import io
import random
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx2
import openai
import orjson
import pytest
from PIL import Image
from prometheus_client import REGISTRY
from pydantic import SecretStr
from structlog.testing import capture_logs

from gateway.billing.quotes import cost, quote
from gateway.catalog.loading import load_catalog
from gateway.config import Settings
from gateway.domain import Caller, InputImage, Operation, Price, new_id
from gateway.generation.parameters import parse_image_request
from gateway.money import format_usd
from gateway.providers.gemini.answers import read_answer
from gateway.providers.gemini.request import encode_request
from tests.harness import Served, error_of, make_settings, served_gateway
from tests.image_helpers import png
from tests.money_helpers import books
from tests.stream_helpers import open_stream, read_events
from tests.stub_gemini import StubGemini, answer_of
from tests.stub_gemini.api import KEY, MODELS, PIXELS, SCALES, drawn
from tests.stub_openai import Stub

BANANA = "gemini-nano-banana-2.1"
PATH = "/v1/images/generations"
BODY: dict[str, Any] = {"model": BANANA, "prompt": "a red circle", "size": "1376x768"}
CATALOG = load_catalog(lambda: date(2026, 11, 28))
CALLER = Caller(new_id(), None, new_id(), True, frozenset(), None, None, "active")  # noqa: FBT003


@pytest.fixture
def settings(database: str, gemini: StubGemini, tmp_path: Path) -> Settings:
    return make_settings(
        database,
        tmp_path,
        GEMINI_API_KEY=SecretStr(KEY),
        GEMINI_BASE_URL=gemini.base_url,
        provider_read_timeout_seconds=2,
    )


async def expect_books_to_agree(served: Served, gemini: StubGemini) -> None:
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in gemini.bill)
    assert [one for one in await books(served) if (one.final_nano or 0) > one.held_nano] == []


def image_of(answer: dict[str, Any], index: int = 0) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer["data"][index]["b64_json"])))


async def buy(served: Served, **changes: Any) -> httpx2.Response:
    async with served.http(await served.key()) as http:
        return await http.post(PATH, json=BODY | changes)


def generated(number: int) -> tuple[int, int]:
    """The hold and the charge of a generated request, without network or database."""
    chance = random.Random(number)
    model = CATALOG.models[chance.choice(sorted(MODELS))]
    wished = {
        "model": model.id,
        "prompt": "é x" * chance.choice([1, 7, 400]),
        "n": chance.choice([None, 1, 2, 4]),
        "size": chance.choice([None, "auto", *model.sizes.fixed]),
        "quality": chance.choice([None, *model.qualities]),
        "moderation": chance.choice([None, "low", "auto"]),
    }
    inputs = chance.choice([0, 0, 1, 14])
    operation = Operation.EDIT if inputs else Operation.GENERATION
    if inputs:
        wished.pop("moderation")
    request = parse_image_request(
        wished, CALLER, CATALOG, default_model=BANANA, operation=operation
    )
    file = io.BytesIO(png(8, 8))
    image = InputImage(file, "image/png", 8, 8, 100, has_alpha=False, is_transparent=False)
    request = replace(request, inputs=(image,) * inputs)
    assert model.price is not None
    price = Price(
        1,
        model.id,
        datetime(2020, 1, 1, tzinfo=UTC),
        model.price.text_input_nano,
        model.price.image_input_nano,
        model.price.image_output_nano,
        model.price.text_output_nano,
    )
    charged = settled = 0
    for call in range(request.n):
        body = orjson.loads(encode_request(request))
        answer, line = answer_of(model.id, body, seed=number + call)
        assert line is not None
        usage = read_answer(orjson.dumps(answer), request, None).usage
        assert usage is not None
        charged += line.cost_nano_usd
        settled += cost(usage, price)
    assert settled == charged
    return quote(request, price).amount_nano, charged


def test_no_call_costs_more_than_its_hold() -> None:
    found = [generated(number) for number in range(2000)]
    assert [(held, charged) for held, charged in found if charged > held] == []


async def test_ratio_tier_and_thinking_are_sent_and_the_bill_agrees(
    served: Served, gemini: StubGemini
) -> None:
    answer = await buy(served, size="2752x1536", quality="high", moderation="low")
    assert answer.status_code == 200
    [call] = gemini.calls
    assert (call.key, call.headers["content-type"]) == (KEY, "application/json")
    assert call.json is not None
    assert call.json["generationConfig"] == {
        "responseModalities": ["IMAGE"],
        "imageConfig": {"aspectRatio": "16:9", "imageSize": "2K"},
        "thinkingConfig": {"thinkingLevel": "high"},
    }
    assert len(call.json["safetySettings"]) == 4
    assert image_of(answer.json()).size == (2752, 1536)
    assert answer.json()["size"] == "2752x1536"
    assert answer.headers["x-gateway-cost-usd"] == format_usd(gemini.bill[0].cost_nano_usd)
    await expect_books_to_agree(served, gemini)


@pytest.mark.parametrize(
    ("size", "shape", "made"),
    [
        ("1536x1024", ("3:2", "1K"), "1264x848"),
        ("1024x1536", ("2:3", "1K"), "848x1264"),
        ("1792x1024", ("16:9", "1K"), "1376x768"),
        ("3840x2160", ("16:9", "2K"), "2752x1536"),
    ],
)
async def test_a_size_of_another_vendor_stands_for_its_ratio_and_tier(
    served: Served, gemini: StubGemini, size: str, shape: tuple[str, str], made: str
) -> None:
    answer = await buy(served, size=size, style="natural")
    [call] = gemini.calls
    assert call.json is not None
    config = call.json["generationConfig"]["imageConfig"]
    assert (config["aspectRatio"], config["imageSize"]) == shape
    [text] = call.json["contents"][0]["parts"]
    assert text["text"] == "a red circle\n\nStyle: natural and understated, less hyper-real."
    assert answer.json()["size"] == made
    assert image_of(answer.json()).size == tuple(map(int, made.split("x")))
    await expect_books_to_agree(served, gemini)


async def test_a_size_without_a_near_ratio_or_tier_is_refused_with_those_that_have(
    served: Served, gemini: StubGemini
) -> None:
    for size in ("1600x1008", "256x256", "9000x9000", "1x1"):
        told = error_of(await buy(served, size=size))
        assert told["param"] == "size"
        assert "1376x768" in told["message"]
        assert "its ratio differs by at most 2 %" in told["message"]
    assert gemini.calls == []


@pytest.mark.parametrize("model", sorted(MODELS))
async def test_every_size_of_every_model_is_accepted(model: str) -> None:
    for size, shape in CATALOG.models[model].shapes.items():
        width, height = PIXELS[shape.ratio]
        scale = SCALES[shape.tier]
        assert size == f"{int(width * scale)}x{int(height * scale)}"
        assert shape.ratio in MODELS[model].ratios
        assert shape.tier in MODELS[model].tiers


@pytest.mark.parametrize("model", sorted(MODELS))
async def test_a_request_that_leaves_all_open_asks_for_1k(
    served: Served, gemini: StubGemini, model: str
) -> None:
    answer = await buy(served, model=model, size=None)
    assert answer.status_code == 200
    [call] = gemini.calls
    tier = {} if model.endswith("lite-image") else {"imageSize": "1K"}
    assert call.json is not None
    assert call.json["generationConfig"] == {
        "responseModalities": ["IMAGE"],
        "imageConfig": tier,
    }
    await expect_books_to_agree(served, gemini)


async def test_several_images_are_several_calls_at_once_under_one_reservation(
    served: Served, gemini: StubGemini
) -> None:
    gemini.held.clear()
    buying = asyncio.create_task(buy(served, n=4))
    for _ in range(4):
        await gemini.arrived.acquire()
    gemini.held.set()
    assert len((await buying).json()["data"]) == 4
    assert len(gemini.calls) == 4
    [booked] = await books(served)
    assert booked.state == "posted"
    await expect_books_to_agree(served, gemini)
    async with served.http(await served.key()) as http:
        await served.gateway.request_log.flush()
        name = (await buying).headers["x-request-id"]
        logged = (await http.get(f"/v1/requests/{name}")).json()
    assert (logged["provider_calls"], logged["model_version"]) == (4, BANANA)


async def test_an_edit_sends_its_inputs_in_order_after_the_prompt(
    served: Served, gemini: StubGemini
) -> None:
    files = [png(32, 32, turn=turn) for turn in range(3)]
    async with served.openai(await served.key()) as client:
        raw = await client.images.with_raw_response.edit(
            model=BANANA, prompt="together", image=files, n=2, size="1024x1024"
        )
    assert len(raw.parse().data or []) == 2
    for call in gemini.calls:
        assert call.json is not None
        [text, *images] = call.json["contents"][0]["parts"]
        assert text == {"text": "together"}
        data = [one["inlineData"]["data"] for one in images]
        opened = [Image.open(io.BytesIO(base64.b64decode(one))) for one in data]
        assert [image.size for image in opened] == [(32, 32)] * 3
        assert len(set(data)) == 3
    await expect_books_to_agree(served, gemini)


REFUSALS = [
    ("invalid", 400, None, "void", "rejected"),
    ("echo", 400, None, "void", "rejected"),
    ("key_invalid", 503, "provider_unavailable", "void", "rejected"),
    ("precondition", 503, "provider_unavailable", "void", "rejected"),
    ("unauthenticated", 503, "provider_unavailable", "void", "rejected"),
    ("denied", 503, "provider_unavailable", "void", "rejected"),
    ("not_found", 503, "provider_unavailable", "void", "rejected"),
    ("minute", 429, "rate_limit_exceeded", "void", "rejected"),
    ("day", 503, "provider_unavailable", "void", "rejected"),
    ("refused_prompt", 400, "moderation_blocked", "posted", "refused_charged"),
    ("refused_image", 400, "moderation_blocked", "posted", "refused_charged"),
    ("limited", 503, "provider_unavailable", "posted", "refused_charged"),
    ("no_image", 500, "image_unfinished", "posted", "success"),
    ("max_tokens", 500, "image_unfinished", "posted", "success"),
    ("unknown_reason", 500, "image_unfinished", "posted", "success"),
    ("text_only", 500, "image_unfinished", "posted", "success"),
    ("only_thoughts", 500, "image_unfinished", "posted", "success"),
    ("internal", 504, "outcome_unknown", "unknown", "ambiguous"),
    ("unavailable", 504, "outcome_unknown", "unknown", "ambiguous"),
    ("deadline", 504, "outcome_unknown", "unknown", "ambiguous"),
    ("reset", 504, "outcome_unknown", "unknown", "ambiguous"),
    ("half", 504, "outcome_unknown", "unknown", "ambiguous"),
    ("hang", 504, "outcome_unknown", "unknown", "ambiguous"),
    ("wrong_type", 504, "outcome_unknown", "unknown", "ambiguous"),
]


@pytest.mark.parametrize("row", REFUSALS, ids=[row[0] for row in REFUSALS])
async def test_each_failure_has_its_answer_and_its_line(
    served: Served, gemini: StubGemini, row: tuple[str, int, str | None, str, str]
) -> None:
    fault, status, code, state, outcome = row
    gemini.faults.append(fault)
    answer = await buy(served)
    told = error_of(answer)
    assert (answer.status_code, len(gemini.calls)) == (status, 1), told
    if code is not None:
        assert told["code"] == code
    assert KEY not in answer.text
    [booked] = await books(served)
    assert (booked.state, booked.outcome) == (state, outcome)
    if state == "posted":
        await expect_books_to_agree(served, gemini)
        assert booked.final_nano
    if fault == "echo":
        assert told["message"] == "The key [redacted] may not do that."
    if fault == "minute":
        assert answer.headers["retry-after"] == "38"
    if fault == "text_only":
        assert "I cannot draw that, but here is a poem." in told["message"]


@pytest.mark.parametrize("fault", ["no_usage", "no_details", "drafts", "gzip", "no_thoughts"])
async def test_odd_answers_are_read(served: Served, gemini: StubGemini, fault: str) -> None:
    gemini.faults.append(fault)
    answer = await buy(served)
    assert answer.status_code == 200
    assert image_of(answer.json()).size == (1376, 768)
    status = answer.headers["x-gateway-cost-status"]
    assert status == ("estimated" if fault == "no_usage" else "actual")
    if fault != "no_usage":
        await expect_books_to_agree(served, gemini)


async def test_a_provider_that_cannot_be_reached_costs_nothing(
    settings: Settings, gemini: StubGemini
) -> None:
    away = settings.model_copy(update={"gemini_base_url": "http://127.0.0.1:9"})
    async with served_gateway(away) as served:
        for n in (1, 3):
            answer = await buy(served, n=n)
            assert error_of(answer)["code"] == "provider_unreachable"
        assert {one.state for one in await books(served)} == {"void"}
    assert gemini.calls == []


async def test_a_refusal_that_was_charged_is_replayed_and_not_bought_again(
    served: Served, gemini: StubGemini
) -> None:
    gemini.faults.append("refused_image")
    key = {"Idempotency-Key": "once"}
    async with served.http(await served.key()) as http:
        answers = [await http.post(PATH, json=BODY, headers=key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json() == answers[1].json()
    assert len(gemini.calls) == 1
    await expect_books_to_agree(served, gemini)


async def test_of_several_calls_the_images_that_came_are_delivered_and_all_are_paid(
    served: Served, gemini: StubGemini
) -> None:
    gemini.faults += ["refused_image", "", "minute"]
    with capture_logs() as lines:
        answer = await buy(served, n=3)
    assert (answer.status_code, len(answer.json()["data"])) == (200, 1)
    assert answer.headers["x-gateway-cost-status"] == "actual"
    calls = [line for line in lines if line["event"] == "provider_call"]
    assert sorted(line["outcome"] for line in calls) == ["refused_charged", "rejected", "success"]
    ids = {line["provider_request_id"] for line in calls if line["outcome"] != "rejected"}
    assert len(ids - {None}) == 2
    await expect_books_to_agree(served, gemini)


async def test_of_several_calls_one_of_unknown_cost_makes_the_cost_an_estimate(
    served: Served, gemini: StubGemini
) -> None:
    gemini.faults += ["reset", ""]
    answer = await buy(served, n=2)
    assert (answer.status_code, len(answer.json()["data"])) == (200, 1)
    assert answer.headers["x-gateway-cost-status"] == "estimated"
    [booked] = await books(served)
    assert booked.state == "posted_est"
    assert (booked.final_nano or 0) >= sum(line.cost_nano_usd for line in gemini.bill)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, "JPEG"),
        ({"output_format": "jpeg"}, "JPEG"),
        ({"output_format": "png"}, "PNG"),
        ({"output_format": "webp", "output_compression": 50}, "WEBP"),
    ],
)
async def test_the_models_own_bytes_are_kept_unless_another_format_is_asked_for(
    served: Served, gemini: StubGemini, changes: dict[str, Any], found: str
) -> None:
    gemini.faults.append("jpeg")
    answer = (await buy(served, **changes)).json()
    assert image_of(answer).format == found
    assert answer["output_format"] == found.lower()
    if found == "JPEG":
        assert answer["data"][0]["b64_json"] == drawn("16:9", "1K", "JPEG")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"size": "1600x1008"}, "size"),
        ({"quality": "max"}, "quality"),
        ({"n": 5}, "n"),
        ({"background": "transparent"}, "background"),
        ({"style": "bold"}, "style"),
        ({"model": "gemini-3-pro-image", "quality": "low", "size": None}, "quality"),
        ({"model": "gemini-3.1-flash-lite-image", "size": "2048x2048"}, "size"),
    ],
)
async def test_what_the_model_cannot_do_is_refused_by_name(
    served: Served, gemini: StubGemini, changes: dict[str, Any], param: str
) -> None:
    answer = await buy(served, **changes)
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)
    assert gemini.calls == []


async def test_a_mask_and_too_many_bytes_are_refused(served: Served, gemini: StubGemini) -> None:
    async with served.openai(await served.key()) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.images.edit(model=BANANA, prompt="x", image=png(), mask=png(mode="RGBA"))
    assert caught.value.param == "mask"
    assert gemini.calls == []


@pytest.mark.parametrize(
    ("size", "made"), [("896x1280", "896x1200"), ("768x1408", "768x1376"), (None, "1024x1024")]
)
async def test_imagen_is_served_in_its_own_sizes(
    served: Served, gemini: StubGemini, size: str | None, made: str
) -> None:
    answer = await buy(served, model="imagen-4.0-generate-001", size=size, n=2)
    assert answer.headers["x-gateway-served-model"] == BANANA
    assert answer.json()["size"] == made
    await expect_books_to_agree(served, gemini)


async def test_a_tenants_own_key_is_used_and_tested(served: Served, gemini: StubGemini) -> None:
    gemini.keys.add("AIzaSy-the-tenants-own")
    async with served.http(await served.key()) as http:
        stored = await http.put("/v1/credentials/gemini", json={"secret": "AIzaSy-the-tenants-own"})
        tested = await http.post("/v1/credentials/gemini/test")
        answer = await http.post(PATH, json=BODY)
    assert (stored.status_code, tested.json()["status"]) == (200, "valid")
    assert (answer.status_code, gemini.calls[0].key) == (200, "AIzaSy-the-tenants-own")
    gemini.keys.remove("AIzaSy-the-tenants-own")
    async with served.http(await served.key()) as http:
        refused = await http.post(PATH, json=BODY)
    assert (refused.status_code, error_of(refused)["code"]) == (424, "credential_rejected")
    assert "/v1/credentials/gemini" in error_of(refused)["message"]


async def test_without_any_key_the_refusal_names_the_setting(
    database: str, tmp_path: Path, stub: Stub
) -> None:
    settings = make_settings(database, tmp_path, OPENAI_BASE_URL=stub.base_url)
    async with served_gateway(settings) as served:
        answer = await buy(served)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "no_credential")
    assert "GEMINI_API_KEY" in error_of(answer)["message"]


async def test_a_stream_sends_the_completed_image_alone(served: Served, gemini: StubGemini) -> None:
    key = await served.key()
    async with open_stream(
        served, key, "generations", model=BANANA, size="1376x768", output_format=None
    ) as response:
        [completed] = await read_events(response)
    assert completed.name == "image_generation.completed"
    assert completed.data["size"] == "1376x768"
    await expect_books_to_agree(served, gemini)


async def test_mcp_buys_from_it_by_the_models_name_alone(
    served: Served, gemini: StubGemini
) -> None:
    async with served.mcp(await served.key(), "2026-07-28") as client:
        result = await client.call_tool(
            "generate_image", {"prompt": "a red circle", "model": BANANA, "n": 2}
        )
    assert not getattr(result, "is_error", True), result
    assert len(gemini.calls) == 2
    await expect_books_to_agree(served, gemini)


async def test_a_test_key_rehearses_it_without_a_call(served: Served, gemini: StubGemini) -> None:
    async with served.http(await served.key(livemode=False)) as http:
        answer = await http.post(PATH, json=BODY)
    assert (answer.status_code, image_of(answer.json()).size) == (200, (1376, 768))
    assert gemini.calls == []


def rerouted() -> float:
    return REGISTRY.get_sample_value("gateway_alarms_total", {"kind": "model_rerouted"}) or 0


async def test_another_model_version_raises_an_alarm_and_keeps_its_books(
    served: Served, gemini: StubGemini
) -> None:
    gemini.faults.append("other_version")
    before = rerouted()
    assert (await buy(served)).status_code == 200
    assert rerouted() == before + 1
    await expect_books_to_agree(served, gemini)
