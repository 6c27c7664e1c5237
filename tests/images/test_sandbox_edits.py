"""The sandbox's edits and streams: real images that show their inputs, and realistic usage."""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any, BinaryIO

import pytest
from PIL import Image

from gateway.catalog.loading import load_catalog
from gateway.domain import ImageRequest, InputImage, Operation, SecretText
from gateway.media import drawing_process
from gateway.media.decoder_process import JobLimits
from gateway.provider_answers import Outcome, PartialImage, ProviderAnswer, Usage
from gateway.providers.base import ProviderFailure, Reason
from gateway.providers.sandbox.provider import Drawing, Sandbox
from tests.image_helpers import (
    changed_outside,
    changed_share,
    distance,
    file_bytes,
    load_base64,
    mask,
    photo,
    plain,
    with_hole,
)


async def draw(drawing: Drawing, inputs: Sequence[BinaryIO]) -> bytes:
    """Draw as the gateway's drawing processes do, in this one."""
    contents = []
    for file in inputs:
        file.seek(0)
        contents.append(file.read())
    made = drawing_process.draw(contents, [dataclasses.asdict(drawing)], LIMITS)
    return made.content


MODEL = load_catalog().models["gpt-image-2.5-flare"]
LIMITS = JobLimits(40_000_000, 2**30)
AREA = (200, 100, 400, 300)


def opened(image: Image.Image, image_format: str = "PNG") -> InputImage:
    """A checked input image, with its file read to the end as the check leaves it."""
    content = file_bytes(image, image_format)
    file = io.BytesIO(content)
    file.seek(0, io.SEEK_END)
    has_alpha = "A" in image.getbands()
    return InputImage(
        file=file,
        media_type=f"image/{image_format.lower()}",
        width=image.width,
        height=image.height,
        size_bytes=len(content),
        has_alpha=has_alpha,
        is_transparent=has_alpha and image.getchannel("A").getextrema()[0] == 0,
    )


def edit(*inputs: Image.Image | InputImage, **changes: Any) -> ImageRequest:
    """A request with these inputs."""
    opened_inputs = tuple(p if isinstance(p, InputImage) else opened(p) for p in inputs)
    request = ImageRequest(
        model=MODEL,
        requested_model=MODEL.id,
        prompt="A red fox in the forest",
        operation=Operation.EDIT,
        inputs=opened_inputs,
        size="1024x1024",
        quality="low",
    )
    return dataclasses.replace(request, **changes)


async def make(request: ImageRequest) -> ProviderAnswer:
    return await Sandbox(draw).generate(request, SecretText(""))


async def make_one(request: ImageRequest) -> Image.Image:
    answer = await make(request)
    [image] = answer.images
    return load_base64(image)


@pytest.mark.parametrize("background", ["opaque", "transparent"])
@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("size", ["1024x1024", "3840x1280", "816x816", "1024x3072"])
async def test_an_edit_has_exactly_the_size_and_format_asked_for(
    size: str, output_format: str, background: str
) -> None:
    request = edit(photo(90, 50), size=size, output_format=output_format, background=background)
    image = await make_one(request)
    transparent = background == "transparent" and output_format != "jpeg"
    assert (f"{image.width}x{image.height}", image.format, image.mode) == (
        size,
        output_format.upper(),
        "RGBA" if transparent else "RGB",
    )
    if transparent:
        assert image.getchannel("A").getextrema() == (0, 255)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
async def test_every_kind_of_input_is_read(image_format: str, mode: str) -> None:
    input_image = opened(photo(mode=mode), image_format)
    answer = await make(edit(input_image))
    assert load_base64(answer.images[0]).size == (1024, 1024)
    assert not input_image.file.closed


async def test_the_same_edit_gives_the_same_bytes() -> None:
    input_image = opened(photo())
    one, other = await make(edit(input_image)), await make(edit(input_image))
    assert one.images == other.images


async def test_without_a_mask_the_input_shows_through_the_drawing() -> None:
    inputs = [await make_one(edit(plain(colour=colour))) for colour in ("red", "blue")]
    [red, blue] = [image.resize((1, 1)).getpixel((0, 0)) for image in inputs]
    assert isinstance(red, tuple)
    assert isinstance(blue, tuple)
    assert red[0] > blue[0] + 100
    assert blue[2] > red[2] + 100
    assert changed_share(inputs[0], inputs[1]) > 0.99
    assert len(inputs[0].getcolors(1024 * 1024) or []) > 100


async def test_the_drawing_is_inside_the_mask_and_the_input_outside() -> None:
    before = photo(1024, 1024)
    after = await make_one(edit(before, mask=opened(mask(1024, 1024, AREA))))
    drawing = await make_one(edit(operation=Operation.GENERATION))
    inside = (AREA[0] + 8, AREA[1] + 8, AREA[2] - 8, AREA[3] - 8)
    assert changed_share(after, drawing, inside) == 0
    assert changed_share(after, before, inside) > 0.9
    # The middle row is far from the caption; what is outside the mask is nearly as it was.
    near = [
        abs(one - other)
        for one, other in zip(
            before.crop((500, 200, 1000, 300)).tobytes(),
            after.crop((500, 200, 1000, 300)).tobytes(),
            strict=True,
        )
    ]
    assert (min(near), max(near)) == (4, 4)


async def test_not_one_pixel_outside_the_mask_stays_as_it_was() -> None:
    before = photo(1024, 1024)
    after = await make_one(edit(before, mask=opened(mask(1024, 1024, AREA))))
    outside = 1024 * 1024 - (AREA[2] - AREA[0]) * (AREA[3] - AREA[1])
    assert changed_outside(before, after, AREA) > outside * 0.999


async def test_a_mask_is_scaled_with_its_image() -> None:
    before, small = photo(512, 256), mask(512, 256, (0, 0, 256, 256))
    after = await make_one(edit(before, mask=opened(small), size="2048x1024"))
    drawing = await make_one(edit(operation=Operation.GENERATION, size="2048x1024"))
    assert changed_share(after, drawing, (0, 0, 1000, 1024)) < 0.3
    assert changed_share(after, drawing, (1048, 0, 2048, 500)) > 0.9


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask": opened(mask(64, 64, (8, 8, 9, 9)))},
        {"mask": opened(Image.new("RGBA", (64, 64), "black"))},
        {"operation": Operation.VARIATION, "prompt": ""},
    ],
    ids=["blended", "small mask", "mask of nothing", "variation"],
)
async def test_the_images_of_one_edit_differ_from_each_other(changes: dict[str, Any]) -> None:
    answer = await make(edit(photo(), n=10, **changes))
    assert len(set(answer.images)) == 10


async def test_every_further_input_is_in_the_image() -> None:
    others = [photo(turn=turn) for turn in (1, 2, 3)] * 5
    found = {
        (await make(edit(photo(), *others[:count]))).images[0] for count in range(len(others) + 1)
    }
    assert len(found) == 16
    swapped = await make(edit(photo(), others[1], others[0]))
    assert swapped.images[0] not in found


async def test_a_transparent_edit_shows_every_further_input_whole() -> None:
    request = edit(photo(), plain(), plain(), background="transparent")
    strip = (await make_one(request)).crop((31, 31, 190, 190))
    assert strip.getchannel("A").getextrema() == (255, 255)


async def test_transparent_parts_of_the_input_are_filled() -> None:
    image = await make_one(edit(with_hole(photo(), (0, 0, 64, 32))))
    drawing = await make_one(edit(operation=Operation.GENERATION))
    assert changed_share(image, drawing, (0, 0, 1024, 500)) < 0.3
    assert changed_share(image, drawing, (0, 524, 1024, 1024)) > 0.9


async def test_markup_is_in_the_image() -> None:
    without = await make_one(edit(plain(512, 512)))
    overlay = Image.new("RGBA", (512, 512))
    overlay.paste("lime", (100, 100, 200, 200))
    marked = await make_one(edit(plain(512, 512), markup=opened(overlay)))
    assert changed_share(without, marked, (204, 204, 396, 396)) == 1
    assert changed_outside(without, marked, (196, 196, 404, 404)) == 0


@pytest.mark.parametrize(
    ("inputs", "extra", "tokens"),
    [
        ([(1024, 1024)], (), 1033),
        ([(64, 64)], (), 13),
        ([(33, 32), (32, 1)], (), 11 + 10),
        ([(2048, 2048)], (), 1545),
        ([(1024, 1024)] * 16, (), 16 * 1033),
        ([(512, 512)], ("mask",), 2 * 265),
        ([(512, 512)], ("markup",), 2 * 265),
    ],
)
async def test_inputs_cost_a_token_for_each_patch_and_nine_more(
    inputs: list[tuple[int, int]], extra: tuple[str, ...], tokens: int
) -> None:
    overlay = opened(Image.new("RGBA", inputs[0]))
    request = edit(*(plain(*size) for size in inputs), n=2, **dict.fromkeys(extra, overlay))
    answer = await make(dataclasses.replace(request, prompt="12345"))
    assert answer.usage == Usage(2, tokens, 0, 2 * MODEL.tokens.output_tokens("low", 1024, 1024))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("operation", [Operation.GENERATION, Operation.EDIT])
async def test_a_stream_sends_its_partial_images_first(operation: Operation, count: int) -> None:
    inputs = [photo()] if operation is Operation.EDIT else []
    request = edit(*inputs, operation=operation, stream=True, partial_images=count)
    request = dataclasses.replace(request, output_format="webp", background="transparent")
    sent: list[PartialImage] = []
    answer = await Sandbox(draw).generate(request, SecretText(""), sent.append)
    made = [
        PartialImage(index, image.base64, answer.created, "1024x1024", "low", "transparent", "webp")
        for index, image in enumerate(sent)
    ]
    assert (len(sent), sent) == (count, made)
    images = [load_base64(image.base64) for image in sent] + [load_base64(answer.images[0])]
    assert {(image.size, image.format) for image in images} == {((1024, 1024), "WEBP")}
    distances = [distance(image, images[-1]) for image in images]
    assert distances == sorted(set(distances), reverse=True)
    assert answer.usage is not None
    assert answer.usage.image_output_tokens == count * 100 + MODEL.tokens.output_tokens(
        "low", 1024, 1024
    )


async def test_partial_images_that_are_not_taken_cost_nothing() -> None:
    plainly = await make(edit(photo()))
    streamed = await make(edit(photo(), stream=True, partial_images=3))
    assert (streamed.usage, streamed.images) == (plainly.usage, plainly.images)


@pytest.mark.parametrize("count", [0, 2])
async def test_a_stream_can_break_after_its_partial_images(count: int) -> None:
    request = edit(photo(), prompt="[sandbox:stream_error]", stream=True, partial_images=count)
    sent: list[PartialImage] = []
    with pytest.raises(ProviderFailure) as caught:
        await Sandbox(draw).generate(request, SecretText(""), sent.append)
    assert [image.index for image in sent] == list(range(count))
    assert (caught.value.outcome, caught.value.reason) == (Outcome.AMBIGUOUS, Reason.UNKNOWN)


async def test_the_magic_words_work_in_edits() -> None:
    found = {}
    for word in ("moderation", "rejected", "rate_limited", "credential", "unreachable", "unknown"):
        with pytest.raises(ProviderFailure) as caught:
            await make(edit(photo(), prompt=f"[sandbox:{word}]"))
        found[word] = caught.value.outcome
    assert found == {
        "moderation": Outcome.MODERATION,
        "rejected": Outcome.REJECTED,
        "rate_limited": Outcome.REJECTED,
        "credential": Outcome.REJECTED,
        "unreachable": Outcome.NOT_SENT,
        "unknown": Outcome.AMBIGUOUS,
    }
    assert (await make(edit(photo(), prompt="[sandbox:no_usage]"))).usage is None
