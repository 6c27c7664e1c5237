"""Edits: what each model accepts reaches the provider unchanged; sizes by the vendor's rule."""

import inspect
from typing import Any

import openai
import pytest
from openai.resources.images import Images

from gateway.catalog.loading import load_catalog
from gateway.domain import Operation
from tests.harness import GPT2, Served
from tests.image_helpers import (
    answer_images,
    expect_nothing_bought,
    expect_one_call_each,
    file_bytes,
    mask,
    png,
)
from tests.parameter_helpers import requests_with_every_value
from tests.stub_openai import Stub

# The models without a shutdown date, so that no test begins to fail on a certain day.
LIVING = sorted(
    name
    for name, model in load_catalog().models.items()
    if model.provider == "openai" and not model.shutdown_date
)
SUNBURST, FLARE, NEWEST = "gpt-image-2.5-sunburst", "gpt-image-2.5-flare", "gpt-image-2.6-flare"
PROMPT = "a red fox"
# Both edges a multiple of 16, at most 3840 and 3:1, 655,360 to 8,294,400 pixels.
GOOD_SIZES = [
    "816x816",
    "1024x640",
    "1024x1024",
    "1536x1024",
    "1920x1088",
    "3072x1024",
    "3840x1280",
    "3840x2160",
    "2160x3840",
    "2880x2880",
    "1440x480",
    "auto",
]
BAD_SIZES = [
    "256x256",
    "512x512",
    "800x800",
    "1008x640",
    "1000x1000",
    "1920x1080",
    "3856x1296",
    "1456x480",
    "480x1456",
    "2896x2880",
    "3840x2176",
    "1024",
    "1024X1024",
    "1024x1024x1",
    "01024x1024",
    "-1024x1024",
    "1024x1024 ",
    "1024x",
    "",
]


def text_form(arguments: dict[str, Any]) -> dict[str, str]:
    """Arguments as a multipart form carries them."""
    return {name: str(value) for name, value in arguments.items()}


def for_sdk(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments as the vendor's SDK takes them: those that it does not name beside the rest."""
    named = inspect.signature(Images.edit).parameters
    own = {name: value for name, value in arguments.items() if name in named}
    return own | {"extra_body": {name: arguments[name] for name in arguments.keys() - own.keys()}}


@pytest.mark.parametrize("model", [GPT2, SUNBURST, NEWEST])
async def test_every_good_size_is_bought_as_asked(served: Served, stub: Stub, model: str) -> None:
    async with served.openai(await served.key()) as client:
        for size in GOOD_SIZES:
            answer = await client.images.edit(
                model=model, image=png(), prompt=PROMPT, size=size, quality="low"
            )
            [image] = await answer_images(served, answer)
            if size != "auto":
                assert f"{image.width}x{image.height}" == size == answer.size
    assert [call.form and call.form["size"] for call in stub.calls] == GOOD_SIZES
    await expect_one_call_each(served, stub, requests=len(GOOD_SIZES))


@pytest.mark.parametrize("model", [GPT2, SUNBURST, NEWEST])
async def test_every_bad_size_is_refused(served: Served, stub: Stub, model: str) -> None:
    found = {}
    async with served.openai(await served.key()) as client:
        for size in BAD_SIZES:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.images.edit(model=model, image=png(), prompt=PROMPT, size=size)
            found[size] = caught.value.code, caught.value.param
    assert found == dict.fromkeys(BAD_SIZES, ("invalid_value", "size"))
    await expect_nothing_bought(served, stub)


@pytest.mark.parametrize("name", LIVING)
async def test_every_parameter_reaches_the_provider_unchanged(
    served: Served, stub: Stub, name: str
) -> None:
    requests = requests_with_every_value(load_catalog().models[name], Operation.EDIT)
    requests.append({"model": name, "background": "transparent", "output_format": "webp", "n": 2})
    # Snapshots share their model's rules; one request shows that the name itself goes through.
    requests = requests[:1] if "2026-" in name else requests
    async with served.openai(await served.key()) as client:
        for arguments in requests:
            await client.images.edit(image=png(), prompt=PROMPT, **for_sdk(arguments))
    assert [call.form for call in stub.calls] == [
        text_form({"prompt": PROMPT, "n": 1, **arguments}) for arguments in requests
    ]
    await expect_one_call_each(served, stub, requests=len(requests))


@pytest.mark.parametrize("livemode", [False, True], ids=["sandbox", "live"])
async def test_an_edit_can_have_a_transparent_background(
    served: Served, stub: Stub, *, livemode: bool
) -> None:
    async with served.openai(await served.key(livemode=livemode)) as client:
        answer = await client.images.edit(
            model=FLARE,
            image=png(),
            prompt=PROMPT,
            background="transparent",
            output_format="webp",
            output_compression=50,
            quality="low",
            size="816x816",
        )
    [image] = await answer_images(served, answer)
    assert (image.format, image.size, image.mode) == ("WEBP", (816, 816), "RGBA")
    assert image.getchannel("A").getextrema()[0] == 0
    assert (answer.background, answer.output_format) == ("transparent", "webp")


@pytest.mark.parametrize("livemode", [False, True], ids=["sandbox", "live"])
@pytest.mark.parametrize("model", [SUNBURST, FLARE, NEWEST])
async def test_markup_goes_on_to_the_models_that_know_it(
    served: Served, stub: Stub, model: str, *, livemode: bool
) -> None:
    stub.configure(keep_files=True)
    overlay = file_bytes(mask(64, 48, (0, 0, 32, 32)))
    async with served.openai(await served.key(livemode=livemode)) as client:
        await client.images.edit(
            model=model, image=png(64, 48), markup=overlay, prompt=PROMPT, quality="low"
        )
    if livemode:
        assert [(name, kind) for name, kind, _ in stub.calls[0].files] == [
            ("image", "image/png"),
            ("markup", "image/png"),
        ]
    await expect_one_call_each(served, stub, requests=1)


OVERLAY = file_bytes(mask(64, 64, (0, 0, 32, 32)))
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "xhigh on 2": ({"quality": "xhigh"}, "invalid_value", "quality"),
    "max on 2": ({"quality": "max"}, "invalid_value", "quality"),
    "hd": ({"quality": "hd"}, "invalid_value", "quality"),
    "complexity on 2.5": ({"model": FLARE, "complexity": "low"}, "unknown_parameter", "complexity"),
    "fidelity": ({"input_fidelity": "high"}, "unknown_parameter", "input_fidelity"),
    "fidelity on 2.5": (
        {"model": FLARE, "input_fidelity": "low"},
        "unknown_parameter",
        "input_fidelity",
    ),
    "markup on 2": ({"markup": OVERLAY}, "unknown_parameter", "markup"),
    "markup and mask": (
        {"model": FLARE, "markup": OVERLAY, "mask": OVERLAY},
        "invalid_value",
        "markup",
    ),
    "moderation": ({"extra_body": {"moderation": "low"}}, "unknown_parameter", "moderation"),
    "style": ({"extra_body": {"style": "vivid"}}, "unknown_parameter", "style"),
    "gif": ({"output_format": "gif"}, "invalid_value", "output_format"),
    "svg": ({"output_format": "svg"}, "invalid_value", "output_format"),
    "transparent jpeg": (
        {"background": "transparent", "output_format": "jpeg"},
        "invalid_value",
        "background",
    ),
    "compressed png": ({"output_compression": 50}, "invalid_value", "output_compression"),
    "compression": (
        {"output_format": "webp", "output_compression": 101},
        "integer_above_max_value",
        "output_compression",
    ),
    "count": ({"n": 11}, "integer_above_max_value", "n"),
    "none": ({"n": 0}, "integer_below_min_value", "n"),
    "long prompt": ({"prompt": "x" * 32_001}, "string_above_max_length", "prompt"),
    "no prompt": ({"prompt": " "}, "invalid_value", "prompt"),
    "identifier": ({"safety_identifier": "x" * 513}, "invalid_value", "safety_identifier"),
    "answer": ({"response_format": "png"}, "invalid_value", "response_format"),
    "frames": ({"frame_count": 4}, "unknown_parameter", "frame_count"),
}


async def test_parameters_unknown_to_a_model_are_refused(served: Served, stub: Stub) -> None:
    found = {}
    base = {"model": GPT2, "image": png(), "prompt": PROMPT}
    async with served.openai(await served.key()) as client:
        for name, (arguments, _, _) in REFUSED.items():
            with pytest.raises(openai.BadRequestError) as caught:
                await client.images.edit(**{**base, **arguments})
            found[name] = caught.value.code, caught.value.param
    assert found == {name: (code, param) for name, (_, code, param) in REFUSED.items()}
    await expect_nothing_bought(served, stub)


async def test_an_unknown_model_is_not_found(served: Served, stub: Stub) -> None:
    async with served.openai(await served.key()) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.images.edit(model="gpt-image-99", image=png(), prompt=PROMPT)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    await expect_nothing_bought(served, stub)


async def test_an_edit_without_a_model_is_served_by_todays_default(
    served: Served, stub: Stub
) -> None:
    async with served.openai(await served.key()) as client:
        await client.images.edit(image=png(), prompt=PROMPT)
    default = served.gateway.settings.default_model
    assert [call.form for call in stub.calls] == [{"model": default, "prompt": PROMPT, "n": "1"}]
