"""OpenAI-compatible hosts of an operator's own: dialects, prices, and answers without usage."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Settings
from tests.compatible_host import Host, made, running_host
from tests.harness import Served, error_of, make_settings, served_gateway
from tests.image_helpers import png
from tests.models_files import write
from tests.money_helpers import books
from tests.stream_helpers import open_stream, read_events

PATH = "/v1/images/generations"
PROMPT = "a red circle"
FILE = """
[[providers]]
name = "omni"
kind = "openai-compatible"
base_url = "BASE"

[[models]]
id = "qwen-image"
provider = "omni"
upstream_name = "Qwen/Qwen-Image"
endpoints = ["generations", "edits"]
sizes = ["64x64", "128x64"]
qualities = { low = 10, high = 40 }
parameters = ["negative_prompt", "seed", "steps", "guidance_scale"]
defaults = { guidance_scale = 4.5 }
fields = { guidance_scale = "true_cfg_scale" }
drop = ["user"]
price = { per_image_usd = "0.004" }

[[models]]
id = "local"
provider = "omni"
sizes = ["64x64"]
parameters = ["negative_prompt", "steps"]
fields = { steps = "step" }
negative_prompt_after = "|"
price = { per_image_usd = "0.004" }

[[models]]
id = "plain"
provider = "omni"
sizes = ["64x64"]
qualities = ["low", "high"]
drop = ["response_format"]
price = { per_second_usd = "0.01" }
timeout_seconds = 5
"""


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with running_host() as running:
        yield running


@pytest.fixture
def settings(database: str, host: Host, tmp_path: Path) -> Settings:
    return make_settings(
        database,
        tmp_path,
        models_file=write(tmp_path, FILE, host.base_url),
        OPENAI_BASE_URL=host.base_url,
    )


async def buy(served: Served, **body: Any) -> Any:
    async with served.http(await served.key()) as http:
        return await http.post(PATH, json={"model": "qwen-image", "prompt": PROMPT} | body)


async def expect_books_to_agree(served: Served, host: Host) -> None:
    assert await served.ledger_total() == host.images * 4_000_000


async def test_a_request_is_in_the_hosts_words_and_the_bill_agrees(
    served: Served, host: Host
) -> None:
    answer = await buy(served, n=2, quality="high", seed=3, user="someone", negative_prompt="blur")
    assert answer.status_code == 200, answer.text
    assert host.calls == [
        {
            "model": "Qwen/Qwen-Image",
            "prompt": PROMPT,
            "n": 2,
            "size": "64x64",
            "negative_prompt": "blur",
            "seed": 3,
            "num_inference_steps": 40,
            "true_cfg_scale": 4.5,
            "response_format": "b64_json",
        }
    ]
    told = answer.json()
    assert (told["size"], told["output_format"], told["quality"]) == ("64x64", "jpeg", "high")
    assert [item["seed"] for item in told["data"]] == [3, 3]
    assert answer.headers["x-gateway-cost-status"] == "actual"
    assert "authorization" not in host.headers[0]
    await expect_books_to_agree(served, host)


async def test_a_negative_prompt_stands_in_the_prompt_where_a_host_reads_it_there(
    served: Served, host: Host
) -> None:
    for given in ({}, {"negative_prompt": "blur, text", "steps": 9}):
        assert (await buy(served, model="local", **given)).status_code == 200
    plain, mixed = host.calls
    assert plain["prompt"] == PROMPT
    assert (mixed["prompt"], mixed["step"]) == (f"{PROMPT}|blur, text", 9)
    assert "negative_prompt" not in mixed
    refused = error_of(await buy(served, model="local", prompt="a fox | a bear"))
    assert refused["param"] == "prompt"
    assert "negative_prompt" in refused["message"]
    assert len(host.calls) == 2
    await expect_books_to_agree(served, host)


async def test_a_seed_is_made_recorded_and_returned(served: Served, host: Host) -> None:
    answer = await buy(served)
    assert answer.json()["data"][0]["seed"] == host.calls[0]["seed"]


async def test_a_quality_without_steps_is_passed_on_and_time_is_paid(
    served: Served, host: Host
) -> None:
    answer = await buy(served, model="plain", quality="low")
    assert answer.status_code == 200
    assert host.calls == [
        {"model": "plain", "prompt": PROMPT, "n": 1, "size": "64x64", "quality": "low"}
    ]
    [booked] = await books(served)
    assert (booked.state, booked.held_nano) == ("posted", 50_000_000)
    assert 0 < (booked.final_nano or 0) < 50_000_000


@pytest.mark.parametrize(
    "data", [[], [{}], [{"url": "http://127.0.0.1:9/private.png"}]], ids=["none", "empty", "link"]
)
async def test_time_is_paid_for_an_answer_without_an_image(
    served: Served, host: Host, data: list[dict[str, str]]
) -> None:
    host.answer = {"data": data, "usage": dict.fromkeys(USAGE, 0) | {"input_tokens_details": None}}
    answer = await buy(served, model="plain", quality="low")
    assert (answer.status_code, error_of(answer)["code"]) == (500, "image_unfinished")
    [booked] = await books(served)
    assert (booked.state, booked.outcome) == ("posted", "success")
    assert 0 < (booked.final_nano or 0) < booked.held_nano


async def test_a_rehearsal_costs_at_most_the_time_that_is_reserved(served: Served) -> None:
    async with served.http(await served.key(livemode=False)) as http:
        answer = await http.post(PATH, json={"model": "plain", "prompt": PROMPT, "n": 3})
    assert answer.status_code == 200, answer.text
    [booked] = await books(served)
    assert (booked.held_nano, booked.final_nano) == (50_000_000, 50_000_000)


async def test_an_edit_is_a_form(served: Served, host: Host) -> None:
    async with served.openai(await served.key()) as client:
        await client.images.edit(model="qwen-image", prompt=PROMPT, image=png(64, 64))
    [call] = host.calls
    assert (call["model"], call["size"]) == ("Qwen/Qwen-Image", "64x64")
    assert call["image"].filename == "image-0.png"
    await expect_books_to_agree(served, host)


async def test_an_image_by_its_path_is_fetched_from_the_host(served: Served, host: Host) -> None:
    host.by_path = True
    answer = await buy(served)
    assert answer.status_code == 200
    content = base64.b64decode(answer.json()["data"][0]["b64_json"])
    assert content == made(64, 64)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        ((422, {"detail": [{"loc": ["size"], "msg": "too large"}]}), 400, None),
        ((400, {"detail": "Model is not a diffusion model"}), 400, None),
        (
            (400, {"error": {"message": "no", "code": "moderation_blocked"}}),
            400,
            "moderation_blocked",
        ),
        ((503, {"detail": "Engine dead"}), 504, "outcome_unknown"),
        ((500, {"detail": "CUDA error"}), 504, "outcome_unknown"),
    ],
)
async def test_errors_are_read_in_either_form(
    served: Served, host: Host, error: tuple[int, dict[str, Any]], status: int, code: str | None
) -> None:
    host.error = error
    answer = await buy(served)
    assert answer.status_code == status
    if code is not None:
        assert error_of(answer)["code"] == code
    [booked] = await books(served)
    assert booked.state == ("unknown" if status == 504 else "void")


USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 0},
    "output_tokens": 200,
    "total_tokens": 210,
}


async def test_a_stream_answered_with_plain_json_is_read(served: Served, host: Host) -> None:
    host.answer = {"usage": USAGE, "size": "1024x1024", "quality": "low"}
    key = await served.key()
    async with open_stream(served, key, "generations", partial_images=2) as response:
        [completed] = await read_events(response)
    assert completed.name == "image_generation.completed"
    assert host.calls[0]["stream"] is True
    [booked] = await books(served)
    assert (booked.state, booked.final_nano) == ("posted", 10 * 5_000 + 200 * 30_000)


@pytest.mark.parametrize(
    ("asked", "named", "counted"),
    [
        ({"quality": "low", "size": "1024x1024"}, {}, "low/1024x1024"),
        ({"size": "1024x1024"}, {"quality": "low"}, "low/1024x1024"),
        ({}, {"quality": "low"}, "low/1024x1024"),
        ({"quality": "low"}, {"size": "1536x1024"}, "low/1536x1024"),
        ({}, {}, "medium/1024x1024"),
    ],
)
async def test_an_answer_without_usage_is_estimated_at_what_was_asked_for_or_served(
    served: Served, host: Host, asked: dict[str, str], named: dict[str, str], counted: str
) -> None:
    host.answer = named
    answer = await buy(served, model="gpt-image-2", **asked)
    assert answer.status_code == 200
    assert answer.headers["x-gateway-cost-status"] == "estimated"
    quality, size = counted.split("/")
    async with served.http(await served.key()) as http:
        quote = await http.post(
            "/v1/images/quotes",
            json={"model": "gpt-image-2", "prompt": PROMPT, "quality": quality, "size": size},
        )
    assert answer.headers["x-gateway-cost-usd"] == f"{float(quote.json()['cost_usd_max']):.9f}"
    [booked] = await books(served)
    assert booked.state == "posted_est"


async def test_a_host_that_answers_is_ready(served: Served, host: Host) -> None:
    async with served.http(await served.key()) as http:
        shown = (await http.get("/v1/models/qwen-image")).json()
    assert (shown["owned_by"], shown["ready"]) == ("omni", False)  # it lists no models


async def test_the_same_program_runs_against_each_provider_by_the_model_alone(
    database: str, host: Host, tmp_path: Path
) -> None:
    settings = make_settings(
        database,
        tmp_path,
        models_file=write(tmp_path, FILE, host.base_url),
        OPENAI_BASE_URL=host.base_url,
    )
    async with served_gateway(settings) as served, served.openai(await served.key()) as client:
        for model in ("gpt-image-2", "qwen-image"):
            answer = await client.images.generate(model=model, prompt=PROMPT)
            assert answer.data
            assert answer.data[0].b64_json
