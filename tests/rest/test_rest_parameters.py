"""Good requests: what a model accepts reaches the provider unchanged, and nothing else does."""

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from gateway.catalog.loading import load_catalog
from gateway.domain import Operation
from tests.harness import GPT2, HOUSE_KEY, Served, secret_of
from tests.parameter_helpers import requests_with_every_value
from tests.stub_openai import Stub

PATH = "/v1/images/generations"
CATALOG = load_catalog()
# The models without a shutdown date, so that no test begins to fail on a certain day.
LIVING = sorted(
    name
    for name, model in CATALOG.models.items()
    if model.provider == "openai" and model.shutdown_date is None
)


def upstream(**given: Any) -> dict[str, Any]:
    """The fields that the provider should get: the client's own, and the number of images."""
    given.pop("response_format", None)
    if (style := given.pop("style", None)) is not None:
        sentence = CATALOG.models[given["model"]].style_sentences[style]
        given["prompt"] = f"{given['prompt']}\n\n{sentence}"
    return {"n": 1, **given}


@pytest.mark.parametrize("name", LIVING)
async def test_every_parameter_reaches_the_provider_unchanged(
    served: Served, stub: Stub, name: str
) -> None:
    made = requests_with_every_value(CATALOG.models[name], Operation.GENERATION)
    made.append(made[0] | {"background": "transparent", "output_format": "webp"})
    requests = [{"prompt": "a red circle", **given} for given in made]
    # Snapshots share their model's rules; one request shows that the name itself goes through.
    requests = requests[:1] if "2026-" in name else requests
    async with served.http(await served.key()) as http:
        for body in requests:
            response = await http.post(PATH, json=body)
            assert response.status_code == 200, (body, response.text)
            assert response.headers["x-gateway-served-model"] == name
    assert [call.json for call in stub.calls] == [upstream(**body) for body in requests]


async def test_only_the_prompt_is_needed(served: Served, stub: Stub) -> None:
    default = served.gateway.settings.default_model
    async with served.http(await served.key()) as http:
        response = await http.post(PATH, json={"prompt": "a red circle"})
    assert response.status_code == 200
    assert [call.json for call in stub.calls] == [upstream(model=default, prompt="a red circle")]


async def test_null_means_left_out(served: Served, stub: Stub) -> None:
    names = ["n", "background", "output_format", "output_compression", "user", "moderation"]
    names += ["safety_identifier", "response_format", "stream", "partial_images", "unheard_of"]
    body = {"model": GPT2, "prompt": "a red circle", **dict.fromkeys(names)}
    async with served.http(await served.key()) as http:
        response = await http.post(PATH, json=body | {"size": "1024x1024", "quality": "low"})
    assert response.status_code == 200
    sent = upstream(model=GPT2, prompt="a red circle", size="1024x1024", quality="low")
    assert [call.json for call in stub.calls] == [sent]


async def test_streaming_that_is_switched_off_is_left_out(served: Served, stub: Stub) -> None:
    body = {"model": GPT2, "prompt": "x", "size": "1024x1024", "quality": "low"}
    async with served.http(await served.key()) as http:
        response = await http.post(PATH, json=body | {"stream": False, "partial_images": 0})
    assert response.status_code == 200
    assert [call.json for call in stub.calls] == [upstream(**body)]


async def test_several_images_are_one_call(served: Served, stub: Stub) -> None:
    body = {"model": GPT2, "prompt": "x", "size": "1024x1024", "quality": "low", "n": 10}
    async with served.http(await served.key()) as http:
        answer = (await http.post(PATH, json=body)).json()
    assert [call.json for call in stub.calls] == [body]
    assert len(answer["data"]) == 10
    assert set(answer) == {
        "created",
        "data",
        "background",
        "output_format",
        "quality",
        "size",
        "usage",
    }


PROMPTS = {
    "NUL": "a \u0000 cat",
    "controls": "a\r\n\t\u001b[31m\u0007 cat",
    "astral": "a 🐈\u200d⬛ 𝄞 cat",
    "right to left": "\u202eخط\u202c",
    "combining": "e\u0301" * 1000,
    "noncharacter": "\uffff\ufffe\ufeff",
    "SQL": "'; DROP TABLE ledger; --",
    "JSON": '"}]}{"n": 10}',
    "format": "%s %(x)s {0} {prompt} ${jndi:ldap://x}",
    "longest": "猫" * 32_000,
}


async def test_any_text_is_a_prompt_in_both_modes(served: Served, stub: Stub) -> None:
    body = {"model": GPT2, "size": "1024x1024", "quality": "low"}
    statuses = {}
    for livemode in (True, False):
        async with served.http(await served.key(livemode=livemode)) as http:
            for name, prompt in PROMPTS.items():
                content = json.dumps({**body, "prompt": prompt})
                statuses[name, livemode] = (await http.post(PATH, content=content)).status_code
    assert statuses == dict.fromkeys(statuses, 200)
    sent = [call.json["prompt"] for call in stub.calls if call.json is not None]
    assert sent == list(PROMPTS.values())


async def test_control_characters_pass_in_every_text_field(served: Served, stub: Stub) -> None:
    text = "\u0000 \u001b 🐈"
    body = {"model": GPT2, "prompt": "x", "size": "1024x1024", "quality": "low"}
    body |= {"user": text, "safety_identifier": text}
    async with served.http(await served.key()) as http:
        response = await http.post(PATH, content=json.dumps(body))
    assert response.status_code == 200
    assert [call.json for call in stub.calls] == [upstream(**body)]


async def test_of_a_name_given_twice_the_last_value_counts_everywhere(
    served: Served, stub: Stub
) -> None:
    twice = (
        f'{{"model": "{GPT2}", "size": "1024x1024", "quality": "low", "prompt": "first", "n": 10,'
        ' "prompt": "second", "n": 1}'
    )
    once = {"model": GPT2, "size": "1024x1024", "quality": "low", "prompt": "second", "n": 1}
    async with served.http(await served.key()) as http:
        quoted = [
            (await http.post("/v1/images/quotes", content=content)).json()
            for content in (twice, json.dumps(once))
        ]
        assert (await http.post(PATH, content=twice)).status_code == 200
    assert quoted[0] == quoted[1]
    assert [call.json for call in stub.calls] == [once]


async def test_nothing_of_the_clients_request_but_its_fields_goes_upstream(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    body = {"model": GPT2, "prompt": "x", "size": "1024x1024", "quality": "low"}
    headers = {
        "Idempotency-Key": "from-the-client",
        "OpenAI-Organization": "org-evil",
        "X-Stainless-Lang": "evil",
        "X-Forwarded-For": "10.0.0.1",
        "Cookie": "session=1",
    }
    async with served.http(key) as http:
        response = await http.post(f"{PATH}?model=dall-e-2&n=10", json=body, headers=headers)
    assert response.status_code == 200
    call = stub.calls[0]
    assert (call.path, call.key, call.json) == (PATH, HOUSE_KEY, upstream(**body))
    assert secret_of(key) not in str(call)
    assert call.stainless.keys() <= {"traceparent"}


@pytest.mark.parametrize("livemode", [True, False])
async def test_formats_and_sizes_are_those_asked_for(served: Served, livemode: bool) -> None:  # noqa: FBT001
    async with served.http(await served.key(livemode=livemode)) as http:
        for output_format in ("png", "jpeg", "webp"):
            body = {"model": GPT2, "prompt": "x", "size": "1536x1024", "quality": "low"}
            answer = (await http.post(PATH, json=body | {"output_format": output_format})).json()
            content = base64.b64decode(answer["data"][0]["b64_json"])
            with Image.open(io.BytesIO(content)) as image:
                assert (image.format, image.size) == (output_format.upper(), (1536, 1024))
            assert (answer["output_format"], answer["size"], answer["quality"]) == (
                output_format,
                "1536x1024",
                "low",
            )
