"""A request that DALL·E 2 would have refused is refused before anything is bought."""

from typing import Any

import openai
import pytest

from tests.harness import Served, error_of
from tests.image_helpers import expect_nothing_bought, file_bytes, mask, padded_png, photo, png
from tests.stub_openai import Stub

MODEL = "dall-e-2"
PROMPT = "a red fox in the forest"
IMAGE, MASK = png(256, 256), file_bytes(mask(256, 256, (64, 64, 128, 192)))
REFUSED_GENERATIONS: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "size": ({"size": "1792x1024"}, ("invalid_value", "size")),
    "auto size": ({"size": "auto"}, ("invalid_value", "size")),
    "count": ({"n": 11}, ("integer_above_max_value", "n")),
    "none": ({"n": 0}, ("integer_below_min_value", "n")),
    "prompt": ({"prompt": "x" * 1001}, ("string_above_max_length", "prompt")),
    "quality": ({"quality": "hd"}, ("invalid_value", "quality")),
    "style": ({"style": "vivid"}, ("unknown_parameter", "style")),
    "background": ({"background": "transparent"}, ("unknown_parameter", "background")),
    "format": ({"response_format": "b64"}, ("invalid_value", "response_format")),
    "stream": ({"stream": True}, ("unknown_parameter", "stream")),
}
REFUSED_EDITS: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "jpeg": (
        {"image": file_bytes(photo(256, 256), "JPEG"), "mask": MASK},
        ("invalid_image_file", "image"),
    ),
    "not square": ({"image": png(256, 128, mode="RGBA")}, ("invalid_image_file", "image")),
    "size of the mask": (
        {"image": png(512, 512), "mask": MASK},
        ("invalid_mask_image_size", "mask"),
    ),
    "mask without alpha": (
        {"image": IMAGE, "mask": IMAGE},
        ("invalid_mask_image_format", "mask"),
    ),
    "four megabytes": (
        {"image": padded_png(IMAGE, 4 * 1_048_576), "mask": MASK},
        ("invalid_image_file", "image"),
    ),
    "no transparency": ({"image": IMAGE}, ("invalid_image_file", "image")),
    "nothing transparent": ({"image": png(256, 256, mode="RGBA")}, ("invalid_image_file", "image")),
    "two images": ({"image": [IMAGE, IMAGE], "mask": MASK}, ("array_above_max_length", "image")),
    "size": ({"image": IMAGE, "mask": MASK, "size": "1792x1024"}, ("invalid_value", "size")),
    "prompt": (
        {"image": IMAGE, "mask": MASK, "prompt": "x" * 1001},
        ("string_above_max_length", "prompt"),
    ),
}


async def test_requests_that_dall_e_2_refused_are_refused(served: Served, stub: Stub) -> None:
    found = {}
    async with served.openai(await served.key()) as client:
        for name, (arguments, _) in REFUSED_GENERATIONS.items():
            with pytest.raises(openai.BadRequestError) as caught:
                await client.images.generate(**{"model": MODEL, "prompt": PROMPT, **arguments})
            found[name] = caught.value.code, caught.value.param
    assert found == {name: expected for name, (_, expected) in REFUSED_GENERATIONS.items()}
    await expect_nothing_bought(served, stub)


async def test_edits_that_dall_e_2_refused_are_refused(served: Served, stub: Stub) -> None:
    found = {}
    async with served.openai(await served.key()) as client:
        for name, (arguments, _) in REFUSED_EDITS.items():
            with pytest.raises(openai.BadRequestError) as caught:
                await client.images.edit(**{"model": MODEL, "prompt": PROMPT, **arguments})
            found[name] = caught.value.code, caught.value.param
        for name, image in (("jpeg", file_bytes(photo(256, 256), "JPEG")), ("wide", png(256, 128))):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.images.create_variation(image=image)
            assert (caught.value.code, caught.value.param) == ("invalid_image_file", "image"), name
    assert found == {name: expected for name, (_, expected) in REFUSED_EDITS.items()}
    await expect_nothing_bought(served, stub)


@pytest.mark.parametrize("size", [[], {}, ["256x256"], 256, True])
async def test_a_size_of_a_wrong_type_names_no_model(
    served: Served, stub: Stub, size: object
) -> None:
    async with served.http(await served.key()) as http:
        response = await http.post("/v1/images/generations", json={"prompt": PROMPT, "size": size})
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_type", "size")
    await expect_nothing_bought(served, stub)
