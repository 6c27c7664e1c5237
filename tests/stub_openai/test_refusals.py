"""The stub refuses the same requests as OpenAI, free of charge."""

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types import ImagesResponse

from tests.stub_openai import Stub
from tests.stub_openai.driving import (  # noqa: F401 - fixtures are used by name
    KEY,
    SMALL,
    client_fixture,
    generate,
    png,
    stub_fixture,
)


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"response_format": "url"}, "unknown_parameter", "response_format"),
        ({"style": "vivid"}, "unknown_parameter", "style"),
        ({"input_fidelity": "high"}, "unknown_parameter", "input_fidelity"),
        ({"colour": "red"}, "unknown_parameter", "colour"),
        ({"size": "512x512"}, "invalid_value", "size"),
        ({"size": "1920x1080"}, "invalid_value", "size"),
        ({"size": "4000x2000"}, "invalid_value", "size"),
        ({"size": "3200x1024"}, "invalid_value", "size"),
        ({"size": "3840x3840"}, "invalid_value", "size"),
        ({"size": "large"}, "invalid_value", "size"),
        ({"size": "816x816", "model": "gpt-image-1.5"}, "invalid_value", "size"),
        ({"quality": "hd"}, "invalid_value", "quality"),
        ({"quality": "max", "model": "gpt-image-2"}, "invalid_value", "quality"),
        ({"n": 0}, "integer_below_min_value", "n"),
        ({"n": 11}, "integer_above_max_value", "n"),
        ({"n": "2"}, "invalid_type", "n"),
        ({"n": True}, "invalid_type", "n"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"partial_images": 4}, "integer_above_max_value", "partial_images"),
        ({"output_format": "gif"}, "invalid_value", "output_format"),
        ({"output_compression": 50}, "invalid_png_output_compression", "output_compression"),
        ({"background": "transparent", "output_format": "jpeg"}, "invalid_value", "background"),
        ({"moderation": "none"}, "invalid_value", "moderation"),
        ({"complexity": "low"}, "invalid_value", "complexity"),
        ({"stream": True, "n": 2}, None, None),
        ({"prompt": ""}, "empty_string", "prompt"),
        ({"prompt": "x" * 32_001}, "string_above_max_length", "prompt"),
        ({"prompt": "a [blocked] thing"}, "moderation_blocked", None),
    ],
)
async def test_a_wrong_parameter_is_a_bad_request_that_costs_nothing(
    stub: Stub,
    client: AsyncOpenAI,
    params: dict[str, object],
    code: str | None,
    param: str | None,
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await generate(client, **{"prompt": "a cat", **params})  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.param) == (code, param)
    assert stub.bill == []
    assert len(stub.calls) == 1


async def test_a_missing_prompt_is_named(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.post("/images/generations", body=dict(SMALL), cast_to=ImagesResponse)
    assert (caught.value.code, caught.value.param) == ("missing_required_parameter", "prompt")


@pytest.mark.parametrize(
    ("size", "why"),
    [
        ("512x512", "Requested resolution is below the current minimum pixel budget."),
        ("1000x1000", "Width and height must both be divisible by 16."),
        ("4096x2048", "The longest edge must be less than or equal to 3840."),
    ],
)
async def test_a_wrong_size_is_refused_in_openais_words(
    client: AsyncOpenAI, size: str, why: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await generate(client, size=size)
    assert caught.value.body == {
        "message": f"Invalid size '{size}'. {why}",
        "type": "invalid_request_error",
        "param": "size",
        "code": "invalid_value",
    }


@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-9", None])
async def test_a_model_that_is_gone_is_refused_before_anything_else(
    client: AsyncOpenAI, model: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await generate(client, model=model, response_format="url", n=99)
    assert caught.value.body == {
        "message": f"The model '{model or 'dall-e-2'}' does not exist.",
        "type": "image_generation_user_error",
        "param": None,
        "code": "invalid_value",
    }


async def test_a_model_can_be_retired(stub: Stub, client: AsyncOpenAI) -> None:
    stub.configure(retired_models=["gpt-image-2"])
    with pytest.raises(openai.BadRequestError):
        await generate(client, model="gpt-image-2")
    assert "gpt-image-2" not in [model.id async for model in client.models.list()]


async def test_a_blocked_prompt_says_at_which_stage(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await generate(client, "[blocked]")
    assert caught.value.type == "image_generation_user_error"
    assert isinstance(caught.value.body, dict)
    details = caught.value.body["moderation_details"]
    assert details == {"moderation_stage": "input", "categories": ["violence"]}


async def test_an_unknown_key_is_unauthorized_and_echoed_with_its_middle_masked(
    stub: Stub, client: AsyncOpenAI
) -> None:
    stub.configure(accepted_keys=["sk-other"])
    with pytest.raises(openai.AuthenticationError) as caught:
        await generate(client)
    assert caught.value.code == "invalid_api_key"
    assert KEY not in caught.value.message
    assert "sk-test-" in caught.value.message
    assert "wxyz" in caught.value.message
    assert stub.calls[0].key == KEY
    assert stub.calls[0].key_last4 == "wxyz"


async def test_a_request_without_a_key_is_unauthorized(stub: Stub) -> None:
    async with httpx2.AsyncClient() as plain:
        answer = await plain.post(f"{stub.base_url}/images/generations", json=SMALL)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, None)


async def test_variations_are_a_bare_404_even_without_a_key(stub: Stub) -> None:
    async with httpx2.AsyncClient() as plain:
        answer = await plain.post(f"{stub.base_url}/images/variations", content=b"anything")
    assert (answer.status_code, answer.content) == (404, b"")
    assert not {"content-type", "x-request-id"} & set(answer.headers)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_the_client_sees_variations_as_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.images.create_variation(image=png())


async def test_models_are_listed_with_their_shutdown_dates(client: AsyncOpenAI) -> None:
    dates = {model.id: model.shutdown_date async for model in client.models.list()}
    assert dates["gpt-image-1.5"] == "2026-12-01"
    assert dates["gpt-image-2.6-flare"] is None
    assert "dall-e-2" not in dates
    assert (await client.models.retrieve("gpt-image-2")).id == "gpt-image-2"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("dall-e-2")
    assert caught.value.code == "model_not_found"


async def test_broken_json_and_unknown_routes_are_refused(stub: Stub) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(headers=headers, base_url=stub.root_url) as plain:
        broken = await plain.post("/v1/images/generations", content=b"{")
        unknown = await plain.post("/v1/images/paintings", json={})
    assert (broken.status_code, unknown.status_code) == (400, 404)
