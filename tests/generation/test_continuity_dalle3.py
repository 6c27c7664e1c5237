"""A program written for DALL·E 3 runs on unchanged: its sizes, styles, qualities and answers."""

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.harness import Served
from tests.image_helpers import (
    answer_images,
    expect_books_to_agree,
    expect_nothing_bought,
    expect_one_call_each,
    old_client,
    png,
)
from tests.stub_openai import Stub

MODEL, SUCCESSOR = "dall-e-3", "gpt-image-2.5-sunburst"
PROMPT = "a white siamese cat"
HEADERS = {
    "x-gateway-requested-model": MODEL,
    "x-gateway-served-model": SUCCESSOR,
    "deprecation": "@1763078400",  # 2025-11-14T00:00:00Z
    "sunset": "Tue, 12 May 2026 00:00:00 GMT",
    "link": f'</v1/models/{SUCCESSOR}>; rel="successor-version"',
    "x-gateway-cost-status": "actual",
}
SENT = {
    "model": SUCCESSOR,
    "prompt": PROMPT,
    "n": 1,
    "size": "1024x1024",
    "quality": "medium",
    "output_format": "png",
}
both_modes = pytest.mark.parametrize("livemode", [False, True], ids=["sandbox", "live"])


@both_modes
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"n": 1, "size": "1024x1024", "quality": "standard"},
        {"n": 1, "size": "1792x1024", "quality": "hd", "response_format": "url"},
        {"size": "1024x1792", "quality": "hd", "response_format": "b64_json"},
        {"size": "1792x1024", "quality": "auto", "response_format": "b64_json"},
    ],
    ids=str,
)
async def test_it_gets_the_image_it_asks_for_and_the_prompt_it_was_made_from(
    served: Served, stub: Stub, arguments: dict[str, Any], *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)

    def program() -> Any:
        with old_client(served, key) as client:
            return client.images.with_raw_response.generate(model=MODEL, prompt=PROMPT, **arguments)

    raw = await asyncio.to_thread(program)
    assert {name: raw.headers.get(name) for name in HEADERS} == HEADERS
    body = json.loads(raw.content)
    assert body.keys() == {"created", "data"}
    [item] = body["data"]
    assert item.keys() == {"revised_prompt", arguments.get("response_format", "url")}
    assert isinstance(item["revised_prompt"], str)
    assert PROMPT in item["revised_prompt"]

    size = arguments.get("size", "1024x1024")
    [image] = await answer_images(served, raw.parse())
    assert (image.format, f"{image.width}x{image.height}") == ("PNG", size)
    quality = "high" if arguments.get("quality") == "hd" else "medium"
    sent = SENT | {"size": size, "quality": quality}
    assert [call.json for call in stub.calls] == ([sent] if livemode else [])
    await expect_books_to_agree(served, stub, key, images=1)
    await expect_one_call_each(served, stub, requests=1)


async def test_its_style_reaches_the_prompt(served: Served, stub: Stub) -> None:
    async with served.openai(await served.key()) as client:
        for style in ("vivid", "natural"):
            await client.images.generate(model=MODEL, prompt=PROMPT, style=style)
        await client.images.generate(model=MODEL, prompt=PROMPT)
    sent = [call.json or {} for call in stub.calls]
    vivid, natural, neither = (str(body["prompt"]) for body in sent)
    assert (vivid[: len(PROMPT)], natural[: len(PROMPT)], neither) == (PROMPT, PROMPT, PROMPT)
    assert "vivid" in vivid[len(PROMPT) :]
    assert "natural" in natural[len(PROMPT) :]
    assert [body | {"prompt": PROMPT} for body in sent] == [SENT] * 3


@both_modes
async def test_hd_is_the_dearer_quality(served: Served, stub: Stub, *, livemode: bool) -> None:
    spent = [0]
    async with served.openai(await served.key(livemode=livemode)) as client:
        for quality in ("standard", "hd"):
            await client.images.generate(
                model=MODEL, prompt=PROMPT, quality=quality, size="1792x1024"
            )
            spent.append(await served.ledger_total())
    standard_nano, hd_nano = spent[1], spent[2] - spent[1]
    assert 0 < standard_nano < hd_nano
    assert (standard_nano, hd_nano) <= (80_000_000, 120_000_000)  # what they once cost


async def test_the_longest_prompt_with_a_style_is_taken(served: Served, stub: Stub) -> None:
    async with served.openai(await served.key()) as client:
        await client.images.generate(model=MODEL, prompt="é" * 4000, style="vivid")
    await expect_one_call_each(served, stub, requests=1)


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "count": ({"n": 2}, ("integer_above_max_value", "n")),
    "old size": ({"size": "256x256"}, ("invalid_value", "size")),
    "new size": ({"size": "1536x1024"}, ("invalid_value", "size")),
    "auto size": ({"size": "auto"}, ("invalid_value", "size")),
    "prompt": ({"prompt": "x" * 4001}, ("string_above_max_length", "prompt")),
    "quality": ({"quality": "high"}, ("invalid_value", "quality")),
    "style": ({"style": "noir"}, ("invalid_value", "style")),
    "format": ({"output_format": "png"}, ("unknown_parameter", "output_format")),
    "stream": ({"stream": True}, ("unknown_parameter", "stream")),
}


async def test_requests_that_dall_e_3_refused_are_refused(served: Served, stub: Stub) -> None:
    found = {}
    async with served.openai(await served.key()) as client:
        for name, (arguments, _) in REFUSED.items():
            with pytest.raises(openai.BadRequestError) as caught:
                await client.images.generate(**{"model": MODEL, "prompt": PROMPT, **arguments})
            found[name] = caught.value.code, caught.value.param
        image = png(256, 256, mode="RGBA")
        with pytest.raises(openai.BadRequestError) as caught:
            await client.images.edit(model=MODEL, image=image, prompt=PROMPT)
        assert (caught.value.code, caught.value.param) == ("invalid_value", "model")
        with pytest.raises(openai.BadRequestError) as caught:
            await client.images.create_variation(model=MODEL, image=image)
        assert (caught.value.code, caught.value.param) == ("invalid_value", "model")
    assert found == {name: expected for name, (_, expected) in REFUSED.items()}
    await expect_nothing_bought(served, stub)
