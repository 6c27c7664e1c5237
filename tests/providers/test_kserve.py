"""KServe through REST, streams and MCP: six servers' requests, costs, and what failures mean."""

import base64
import io
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from gateway.billing.quotes import cost_of_call, quote
from gateway.catalog.loading import Catalog
from gateway.config import Settings
from gateway.domain import Caller, Price, new_id
from gateway.generation.parameters import parse_image_request
from gateway.provider_answers import Outcome
from gateway.providers.base import ProviderFailure
from gateway.providers.kserve.answers import read_answer
from gateway.providers.kserve.request import encode_request
from tests.harness import Served, error_of, make_settings, served_gateway
from tests.models_files import MODELS, SERVERS, SIX, catalog_with, write
from tests.money_helpers import books
from tests.request_log_helpers import rows_of
from tests.stream_helpers import open_stream, read_events
from tests.stub_kserve import StubKServe, answer_of
from tests.stub_kserve.api import KEY
from tests.tls_helpers import Authority, tls_in_front_of

PATH = "/v1/images/generations"
PROMPT = "a red circle"
CALLER = Caller(new_id(), None, new_id(), True, frozenset(), None, None, "active")  # noqa: FBT003


@pytest.fixture
def settings(database: str, kserve: StubKServe, tmp_path: Path) -> Settings:
    return make_settings(
        database,
        tmp_path,
        models_file=write(tmp_path, SIX, kserve.base_url),
        provider_read_timeout_seconds=2,
    )


async def expect_books_to_agree(served: Served, kserve: StubKServe) -> None:
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in kserve.bill)
    assert [one for one in await books(served) if (one.final_nano or 0) > one.held_nano] == []
    assert not any(line.is_noise for line in kserve.bill)


def image_of(answer: dict[str, Any], index: int = 0) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer["data"][index]["b64_json"])))


async def buy(served: Served, **body: Any) -> httpx2.Response:
    async with served.http(await served.key()) as http:
        return await http.post(PATH, json={"model": "sd-demo", "prompt": PROMPT} | body)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return catalog_with(tmp_path_factory.mktemp("models"), SIX)


def generated(catalog: Catalog, number: int) -> tuple[int, int, int]:
    """The hold, the settled cost and the charge of a generated request, without any I/O."""
    chance = random.Random(number)
    usual = [*MODELS[:5], "sd-by-second"]
    model = catalog.models["sd-triton" if number % 50 == 0 else chance.choice(usual)]
    rule = model.sizes
    sizes = rule.fixed or ("64x64", "512x768", "1024x1024", "200x104")
    wished: dict[str, Any] = {
        "model": model.id,
        "prompt": "é x" * chance.choice([1, 7, 400]),
        "n": chance.choice([None, 1, 2, 4]),
        "size": chance.choice([None, "auto", *sizes]),
        "quality": chance.choice([None, *model.qualities]),
    }
    own = {
        "negative_prompt": chance.choice(["", "blur"]),
        "seed": chance.randrange(2**32),
        "steps": chance.randrange(1, 81),
        "guidance_scale": chance.choice([1, 7.5]),
    }
    wished |= {
        name: value
        for name, value in own.items()
        if name in model.parameters and (chance.random() < 0.5 or model.id == "sd-raw")
    }
    request = parse_image_request(wished, CALLER, catalog, default_model="sd-demo")
    assert model.price is not None
    price = Price(
        *(1, model.id, datetime(2020, 1, 1, tzinfo=UTC), 0, 0, 0, 0),
        model.price.per_image_nano,
        model.price.per_second_nano,
    )
    charged = microseconds = images = 0
    server = "demo" if model.id == "sd-by-second" else SERVERS[model.id]
    protocol = catalog.hosts[model.provider].protocol
    for call in range(request.n):
        body = json.loads(encode_request(request, protocol=protocol, seed=number + call))
        content, _, line = answer_of(server, body)
        assert not line.is_noise
        images += len(read_answer(content, request, seed=0, reply=None).images)
        taken = chance.randrange(1, model.read_timeout_seconds * 1_000_000 + 1)
        microseconds += taken
        by_time = -(-taken * price.per_second_nano // 1_000_000)
        charged += by_time if price.per_second_nano else line.cost_nano_usd
    settled = cost_of_call(request, price, usage=None, images=images, microseconds=microseconds)
    assert settled is not None
    return quote(request, price).amount_nano, settled, charged


def read_pixels(catalog: Catalog, pixels: str) -> int:
    """The number of images in an answer of one pixel."""
    asked = {"model": "sd-demo", "prompt": "x"}
    request = parse_image_request(asked, CALLER, catalog, default_model="sd-demo")
    tensor = f'{{"shape": [1, 1, 1, 3], "datatype": "FP32", "data": {pixels}}}'
    content = f'{{"outputs": [{tensor}]}}'.encode()
    return len(read_answer(content, request, seed=0, reply=None).images)


def test_a_pixel_is_finite_and_its_colours_are_whole_or_not(catalog: Catalog) -> None:
    assert read_pixels(catalog, "[0, 0.5, 1]") == 1
    for pixels in ("[0, 1e999, 1]", "[0.5, Infinity, 0.5]"):
        with pytest.raises(ProviderFailure) as failed:
            read_pixels(catalog, pixels)
        assert failed.value.outcome is Outcome.AMBIGUOUS


def test_no_call_costs_more_than_its_hold(catalog: Catalog) -> None:
    found = [generated(catalog, number) for number in range(2200)]
    assert [one for one in found if one[1] > one[0]] == []
    # By the second each call is rounded up alone on the bill, and their sum once here.
    assert [one for one in found if not 0 <= one[2] - one[1] <= 4] == []


@pytest.mark.parametrize("name", MODELS)
async def test_each_server_is_asked_in_its_words_and_the_bill_agrees(
    served: Served, kserve: StubKServe, name: str
) -> None:
    size = "64x64" if name == "sd-triton" else "512x512"
    extras = {"seed": 7} if name == "sd-minimal" else {"seed": 7, "guidance_scale": 7.5}
    answer = await buy(served, model=name, size=size, n=2, **extras)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert [item["seed"] for item in told["data"]] == [7, 8]
    assert [image_of(told, index).size for index in (0, 1)] == [image_of(told).size] * 2
    assert told["size"] == size
    assert answer.headers["x-gateway-cost-usd"] == "0.004000000"
    assert answer.headers["x-gateway-cost-status"] == "actual"
    assert len(kserve.calls) == 2
    await expect_books_to_agree(served, kserve)


async def test_every_field_is_sent_and_open_ones_take_the_models_defaults(
    served: Served, kserve: StubKServe
) -> None:
    open_answer = await buy(served)
    await buy(served, quality="high", negative_prompt="blur", guidance_scale=3, seed=9)
    await buy(served, quality="high", steps=12, size="640x512")
    seed = open_answer.json()["data"][0]["seed"]
    usual = {
        "prompt": PROMPT,
        "negative_prompt": "",
        "width": 512,
        "height": 512,
        "num_inference_steps": 25,
        "guidance_scale": 7.5,
        "scheduler": "Euler",
    }
    first, second, third = (call.json["instances"][0] for call in kserve.calls)
    assert first == usual | {"seed": seed}
    changed = {"negative_prompt": "blur", "num_inference_steps": 50, "guidance_scale": 3.0}
    assert second == usual | changed | {"seed": 9}
    assert third == usual | {
        "num_inference_steps": 12,
        "width": 640,
        "seed": third["seed"],
    }
    assert kserve.calls[0].path == "/v1/models/demo:predict"
    await expect_books_to_agree(served, kserve)


async def test_a_seed_is_kept_with_the_image_and_repeated_with_the_key(
    served: Served, kserve: StubKServe
) -> None:
    key = await served.key()
    body = {"model": "sd-v2", "prompt": PROMPT}
    async with served.http(key) as http:
        answers = [
            await http.post(PATH, json=body, headers={"Idempotency-Key": "once"}) for _ in "ab"
        ]
        listed = (await http.get("/v1/images")).json()["data"]
    seeds = [answer.json()["data"][0]["seed"] for answer in answers]
    assert seeds == [listed[0]["seed"]] * 2
    [sent] = [one["data"] for one in kserve.calls[0].json["inputs"] if one["name"] == "seed"]
    assert sent == [str(seeds[0])]
    assert len(kserve.calls) == 1


OUT_OF_BOUNDS: list[tuple[dict[str, Any], str, str]] = [
    ({"steps": 81}, "steps", "80"),
    ({"steps": 0}, "steps", "1"),
    ({"seed": 2**32}, "seed", "4294967295"),
    ({"seed": -1}, "seed", "0"),
    ({"guidance_scale": 51}, "guidance_scale", "from 0 to 50"),
    ({"guidance_scale": "7"}, "guidance_scale", "a number"),
    ({"size": "100x512"}, "size", "8"),
    ({"size": "32x512"}, "size", "64"),
    ({"size": "2048x512"}, "size", "1024"),
    ({"n": 5}, "n", "4"),
    ({"model": "sd-openshift", "size": "64x64"}, "size", "512x512, 768x512"),
    ({"model": "sd-minimal", "steps": 5}, "steps", "steps"),
    ({"model": "gpt-image-2", "seed": 5}, "seed", "seed"),
    ({"style": "vivid"}, "style", "style"),
]


async def test_a_value_out_of_bounds_is_refused_with_the_bounds(
    served: Served, kserve: StubKServe
) -> None:
    for changes, param, words in OUT_OF_BOUNDS:
        answer = await buy(served, **changes)
        told = error_of(answer)
        assert (answer.status_code, told["param"]) == (400, param), changes
        assert words in str(told["message"])
    assert kserve.calls == []


# What the server does, then status, code and Retry-After of the answer, and the ledger's line.
FAULTS = [
    ("invalid", 400, None, None, "void", "rejected"),
    ("validation", 400, None, None, "void", "rejected"),
    ("denied", 503, "provider_unavailable", "60", "void", "rejected"),
    ("unknown_model", 503, "provider_unavailable", "60", "void", "rejected"),
    ("not_ready", 429, "rate_limit_exceeded", "30", "void", "rejected"),
    ("internal", 504, "outcome_unknown", None, "unknown", "ambiguous"),
    ("mesh", 504, "outcome_unknown", None, "unknown", "ambiguous"),
    ("mesh_timeout", 504, "outcome_unknown", None, "unknown", "ambiguous"),
    ("reset", 504, "outcome_unknown", None, "unknown", "ambiguous"),
    ("hang", 504, "outcome_unknown", None, "unknown", "ambiguous"),
    ("half", 504, "outcome_unknown", None, "unknown", "ambiguous"),
    ("no_image", 504, "outcome_unknown", None, "unknown", "ambiguous"),
    ("link", 504, "outcome_unknown", None, "unknown", "ambiguous"),
]


@pytest.mark.parametrize("row", FAULTS, ids=[row[0] for row in FAULTS])
async def test_each_failure_has_its_answer_and_its_line(
    served: Served, kserve: StubKServe, row: tuple[str, int, str | None, str | None, str, str]
) -> None:
    fault, status, code, delay, state, outcome = row
    kserve.faults.append(fault)
    answer = await buy(served)
    assert (answer.status_code, len(kserve.calls)) == (status, 1), answer.text
    if code is not None:
        assert error_of(answer)["code"] == code
    if delay is not None:
        assert answer.headers["retry-after"] == delay
    [booked] = await books(served)
    assert (booked.state, booked.outcome) == (state, outcome)
    assert booked.held_nano == 2_000_000
    assert kserve.questions == []  # a link in an answer is not followed


async def test_the_servers_id_and_version_are_in_the_request_log(
    served: Served, kserve: StubKServe
) -> None:
    kserve.faults += ["", "named", "named", ""]
    for model in ("sd-v2", "sd-v2", "sd-demo", "sd-demo"):
        await buy(served, model=model)
    rows = await rows_of(served)
    assert [row.get("provider_request_id") for row in rows] == ["r1", "r1", "mesh-1", None]
    # The stub answers with versions in protocol v2 alone, which names them.
    assert [row.get("model_version") for row in rows] == ["3", "3", None, None]


async def test_a_token_in_an_error_is_not_shown(served: Served, kserve: StubKServe) -> None:
    kserve.faults.append("echo")
    answer = await buy(served)
    assert answer.status_code == 400
    assert KEY not in answer.text


async def test_of_several_calls_one_of_unknown_cost_makes_the_cost_an_estimate(
    served: Served, kserve: StubKServe
) -> None:
    kserve.faults += ["reset", ""]
    answer = await buy(served, n=2)
    assert (answer.status_code, len(answer.json()["data"])) == (200, 1)
    assert answer.headers["x-gateway-cost-status"] == "estimated"
    [booked] = await books(served)
    assert (booked.state, booked.final_nano) == ("posted_est", 4_000_000)


async def test_of_several_calls_a_refused_one_costs_nothing(
    served: Served, kserve: StubKServe
) -> None:
    kserve.faults += ["invalid", "", ""]
    answer = await buy(served, n=3)
    assert (answer.status_code, len(answer.json()["data"])) == (200, 2)
    assert answer.headers["x-gateway-cost-status"] == "actual"
    await expect_books_to_agree(served, kserve)


async def test_by_the_second_the_time_of_the_calls_is_paid(
    served: Served, kserve: StubKServe
) -> None:
    answer = await buy(served, model="sd-by-second", n=2)
    assert answer.status_code == 200
    [booked] = await books(served)
    assert booked.state == "posted"
    assert booked.held_nano == 2 * 3 * 1_000_000
    assert 0 < (booked.final_nano or 0) < booked.held_nano
    kserve.faults.append("internal")
    await buy(served, model="sd-by-second")
    await served.check_invariants()


async def test_another_format_is_encoded_by_the_gateway(served: Served, kserve: StubKServe) -> None:
    for name, wished, found in (
        ("sd-openshift", None, "JPEG"),
        ("sd-openshift", "webp", "WEBP"),
        ("sd-demo", "jpeg", "JPEG"),
    ):
        answer = (await buy(served, model=name, output_format=wished)).json()
        assert image_of(answer).format == found
        assert answer["output_format"] == found.lower()


async def test_a_stream_sends_the_completed_image_alone(served: Served, kserve: StubKServe) -> None:
    key = await served.key()
    changes = {"model": "sd-v2", "size": "512x512", "quality": None, "output_format": None}
    async with open_stream(served, key, "generations", **changes) as response:
        [completed] = await read_events(response)
    assert completed.name == "image_generation.completed"
    assert completed.data["size"] == "512x512"
    assert isinstance(completed.data["seed"], int)
    await expect_books_to_agree(served, kserve)


async def test_mcp_buys_from_it_by_the_models_name_alone(
    served: Served, kserve: StubKServe
) -> None:
    async with served.mcp(await served.key(), "2026-07-28") as client:
        result = await client.call_tool(
            "generate_image", {"prompt": PROMPT, "model": "sd-openshift", "n": 2}
        )
        usual = {"prompt": PROMPT, "model": "sd-openshift", "negative_prompt": "blur"}
        least, most = [
            await client.call_tool("generate_image", usual | bounds)
            for bounds in (
                {"seed": 0, "steps": 1, "guidance_scale": 0},
                {"seed": 2**32 - 1, "steps": 150, "guidance_scale": 50},
            )
        ]
    assert [getattr(one, "is_error", True) for one in (result, least, most)] == [False] * 3, result
    made = result.structured_content["images"]
    assert made[1]["seed"] == (made[0]["seed"] + 1) % 2**32
    assert len(kserve.calls) == 4
    assert kserve.calls[3].json["instances"][0]["guidance_scale"] == 50
    await expect_books_to_agree(served, kserve)


async def test_a_test_key_rehearses_it_without_a_call(served: Served, kserve: StubKServe) -> None:
    async with served.http(await served.key(livemode=False)) as http:
        answer = await http.post(
            PATH, json={"model": "sd-demo", "prompt": PROMPT, "seed": 5, "n": 2}
        )
    told = answer.json()
    assert (answer.status_code, image_of(told).size) == (200, (512, 512))
    assert [item["seed"] for item in told["data"]] == [5, 6]
    assert answer.headers["x-gateway-cost-usd"] == "0.004000000"
    assert kserve.calls == []


async def test_a_tenants_own_token_is_used_and_tested(served: Served, kserve: StubKServe) -> None:
    own = "token-of-the-tenant"
    kserve.keys.add(own)
    async with served.http(await served.key()) as http:
        stored = await http.put("/v1/credentials/cluster", json={"secret": own})
        tested = await http.post("/v1/credentials/cluster/test")
        answer = await http.post(PATH, json={"model": "sd-demo", "prompt": PROMPT})
        kserve.keys.remove(own)
        refused = await http.post(PATH, json={"model": "sd-demo", "prompt": PROMPT})
    assert (stored.status_code, tested.json()["status"]) == (200, "valid")
    assert (answer.status_code, kserve.calls[0].headers["authorization"]) == (200, f"Bearer {own}")
    assert (refused.status_code, error_of(refused)["code"]) == (424, "credential_rejected")


async def test_the_list_of_models_says_which_are_ready(served: Served, kserve: StubKServe) -> None:
    async with served.http(await served.key()) as http:
        listed = {one["id"]: one for one in (await http.get("/v1/models")).json()["data"]}
        again = (await http.get("/v1/models/sd-demo")).json()
    assert {name: listed[name]["ready"] for name in (*MODELS, "gpt-image-2")} == dict.fromkeys(
        MODELS, True
    ) | {"gpt-image-2": None}
    assert again["capabilities"]["sizes"]["min_edge"] == 64
    # Each once within `probe_seconds`; two models are the same at the server.
    assert sorted(kserve.questions) == sorted([*set(kserve.questions), "/v1/models/demo"])


async def test_a_model_that_is_not_loaded_is_not_ready(served: Served, kserve: StubKServe) -> None:
    kserve.is_ready = False
    async with served.http(await served.key()) as http:
        shown = [(await http.get(f"/v1/models/{name}")).json() for name in ("sd-demo", "sd-v2")]
    assert [one["ready"] for one in shown] == [False, False]


async def test_one_model_is_declared_by_settings_alone(
    database: str, kserve: StubKServe, tmp_path: Path
) -> None:
    kserve.keys.add("")
    settings = make_settings(
        database,
        tmp_path,
        KSERVE_ENDPOINT=f"{kserve.base_url}/v2/models/v2",
        KSERVE_MODEL_NAME="stable-diffusion",
        KSERVE_PRICE_PER_IMAGE_USD="0.002",
        default_model="stable-diffusion",
    )
    async with served_gateway(settings) as served, served.http(await served.key()) as http:
        answer = await http.post(PATH, json={"prompt": PROMPT})
        assert answer.status_code == 200, answer.text
        await expect_books_to_agree(served, kserve)
    assert answer.headers["x-gateway-served-model"] == "stable-diffusion"
    assert kserve.calls[0].path == "/v2/models/v2/infer"
    assert "authorization" not in kserve.calls[0].headers


async def test_a_private_authority_is_trusted_and_no_other(
    database: str, kserve: StubKServe, tmp_path: Path
) -> None:
    kserve.keys.add("")
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    text = """
[[providers]]
name = "NAME"
kind = "kserve"
base_url = "BASE"
ca_file = "NAME.pem"

[[models]]
id = "sd-NAME"
provider = "NAME"
upstream_name = "minimal"
sizes = ["512x512"]
template = { instances = ["$prompt"] }
price = { per_image_usd = "0.002" }
"""
    both = text.replace("NAME", ours.file.stem) + text.replace("NAME", other.file.stem)
    async with tls_in_front_of(kserve.port, ours) as port:
        path = write(tmp_path, both, f"https://127.0.0.1:{port}")
        settings = make_settings(database, tmp_path, models_file=path)
        async with served_gateway(settings) as served:
            answers = [await buy(served, model=f"sd-{name}") for name in ("ours", "other")]
    assert [answer.status_code for answer in answers] == [200, 502]
    assert len(kserve.calls) == 1
