"""Untrusted images: refused, cleaned, and made into other images."""

import asyncio
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter

import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat

from gateway.media.decoder import Decoder, DecoderFailed, ImageFacts, UnusableImage
from tests.decoding_helpers import GOOD, GOOD_IMAGE, LIMITS, clean, file, opened, problem
from tests.hazards import Hazard, drawing, encoded, exif, hazards


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    shared = Decoder(LIMITS)
    yield shared
    asyncio.run(shared.close())


def named(hazard: Hazard) -> str:
    return hazard.name


# Refused and cleaned files


@pytest.mark.parametrize("hazard", hazards(), ids=named)
async def test_every_hazard_gets_its_answer(hazard: Hazard, decoder: Decoder) -> None:
    if hazard.expected:
        assert await problem(decoder, hazard.content) == hazard.expected
        return
    facts, cleaned = await clean(decoder, hazard.content)
    assert replace(facts, size_bytes=0) == hazard.image
    assert facts.size_bytes == len(cleaned)
    assert [part for part in hazard.hidden if part in cleaned] == []
    assert await clean(decoder, cleaned) == (facts, cleaned), "what is clean stays as it is"


ODD = {
    "jpeg of CMYK": 12,
    "grey jpeg of orientation 8": 3,
    **{f"jpeg of orientation {orientation}": 8 for orientation in range(2, 9)},
    # Pillow reads these wrongly, or not at the same depth; they have tests of their own.
    "png of 16-bit grey": 255,
    "png of 16-bit RGB with a transparent colour": 255,
    "png of 4-bit grey with a transparent grey": 255,
}
"""The largest difference of a sample from the original; all other files stay bit for bit."""


@pytest.mark.parametrize(
    "hazard",
    # Pillow cannot read the files with bombs in their metadata.
    [h for h in hazards() if h.image and "bomb as" not in h.name],
    ids=named,
)
async def test_a_cleaned_image_shows_what_the_original_shows(
    hazard: Hazard, decoder: Decoder
) -> None:
    _, cleaned = await clean(decoder, hazard.content)
    with opened(hazard.content) as before, opened(cleaned) as after:
        upright = ImageOps.exif_transpose(before).convert("RGBA")
        difference = ImageChops.difference(upright, after.convert("RGBA"))
        most = max(ImageStat.Stat(difference).extrema, key=itemgetter(1))[1]
    assert most <= ODD.get(hazard.name, 0)


async def test_deep_samples_keep_their_high_byte(decoder: Decoder) -> None:
    by_name = {hazard.name: hazard.content for hazard in hazards()}
    _, cleaned = await clean(decoder, by_name["png of 16-bit RGB with a transparent colour"])
    high = [value >> 8 for value in range(0, 60000, 5000)]
    row = [(*high[start : start + 3], 0 if start == 3 else 255) for start in (0, 3, 6, 9)]
    assert list(opened(cleaned).get_flattened_data()) == row * 3
    _, cleaned = await clean(decoder, by_name["png of 16-bit grey"])
    assert opened(cleaned).tobytes() == drawing("L").convert("RGB").tobytes()
    _, cleaned = await clean(decoder, by_name["png of 4-bit grey with a transparent grey"])
    assert list(opened(cleaned).get_flattened_data()) == [(0x55,) * 3 + (0,), (0xAA,) * 3 + (255,)]


async def test_a_colour_profile_stays_and_a_place_in_exif_goes(decoder: Decoder) -> None:
    profile = bytes(16) + b"RGB XYZ " + bytes(12) + b"acsp" + bytes(400)
    for form in ("PNG", "JPEG", "WEBP"):
        content = encoded(drawing(), form, icc_profile=profile, exif=exif(6))
        plain = encoded(drawing(), form, icc_profile=profile, exif=exif())
        for given in (content, plain):
            _, cleaned = await clean(decoder, given)
            info = opened(cleaned).info
            assert (info.get("icc_profile"), info.get("exif"), info.get("xmp")) == (
                profile,
                None,
                None,
            )


async def test_a_refusal_quotes_nothing_of_the_image(decoder: Decoder) -> None:
    with pytest.raises(UnusableImage) as refused:
        await clean(decoder, b"<script>secret</script>")
    assert refused.value.message == "The file is not a PNG, JPEG or WebP image."


# Files


async def test_sources_are_read_whole_wherever_they_stand_and_do_not_move(decoder: Decoder) -> None:
    source = file(GOOD)  # nothing of it is written to the system yet
    source.seek(17)
    assert await decoder.clean(source, file()) == GOOD_IMAGE
    assert source.tell() == 17


async def test_a_target_with_something_in_it_is_overwritten(decoder: Decoder) -> None:
    target = file(b"before" * 10_000)
    target.seek(0)
    target.read(100)
    await decoder.clean(file(GOOD), target)
    assert target.read() == GOOD


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a disk that is always full")
async def test_a_target_that_cannot_be_written_is_not_the_images_fault(decoder: Decoder) -> None:
    class Full(io.BytesIO):
        def fileno(self) -> int:
            return disk.fileno()

    with open("/dev/full", "wb") as disk, pytest.raises(DecoderFailed):  # noqa: ASYNC230, PTH123
        await decoder.clean(file(GOOD), Full())
    assert await clean(decoder, GOOD) == (GOOD_IMAGE, GOOD)


# Images made from images


async def test_a_resampled_image_has_exactly_the_size_and_visible_colours_only(
    decoder: Decoder,
) -> None:
    image = Image.new("RGBA", (60, 60), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 30, 60))
    target = file()
    facts = await decoder.resample(file(encoded(image, "PNG")), target, width=101, height=37)
    size_bytes = os.fstat(target.fileno()).st_size
    assert facts == ImageFacts(
        "image/png", 101, 37, size_bytes, has_alpha=True, is_transparent=True
    )
    with Image.open(target) as made:
        visible = made.getchannel("A").point([0] * 8 + [255] * 248)
        red = Image.composite(made.getchannel("R"), Image.new("L", made.size), visible)
    assert red.getextrema() == (0, 0), "hidden red bleeds into visible blue"


async def test_a_resampled_image_of_the_same_size_keeps_its_pixels(decoder: Decoder) -> None:
    for mode in ("RGB", "RGBA"):
        target = file()
        await decoder.resample(file(encoded(drawing(mode), "PNG")), target, width=48, height=32)
        with Image.open(target) as made:
            assert (made.mode, made.tobytes()) == (mode, drawing(mode).tobytes())


def masked(size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A mask that is fully transparent in the middle and nearly so around it."""
    mask = Image.new("RGBA", size, (9, 9, 9, 255))
    mask.paste((9, 9, 9, 1), (size[0] // 8, size[1] // 8, size[0] // 8 * 7, size[1] // 8 * 7))
    mask.paste((9, 9, 9, 0), (size[0] // 4, size[1] // 4, size[0] // 4 * 3, size[1] // 4 * 3))
    return mask


def is_inside(x: int, y: int) -> bool:
    return 12 <= x < 36 and 8 <= y < 24


async def composite(
    decoder: Decoder, original: Image.Image, mask: Image.Image, made: Image.Image
) -> Image.Image:
    target = file()
    files = [file(encoded(image, "PNG")) for image in (original, mask, made)]
    facts = await decoder.composite(files[0], files[1], files[2], target, width=48, height=32)
    assert (facts.width, facts.height, facts.media_type) == (48, 32, "image/png")
    return Image.open(target)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("mask_size", [(48, 32), (96, 64), (24, 16)])
async def test_a_composite_is_the_original_outside_and_the_made_image_inside(
    mode: str, mask_size: tuple[int, int], decoder: Decoder
) -> None:
    original = drawing(mode)
    made = Image.effect_noise((48, 32), 80).convert("RGB")
    result = await composite(decoder, original, masked(mask_size), made)
    expected = original.copy()
    for x in range(48):
        for y in range(32):
            if is_inside(x, y):
                expected.putpixel((x, y), made.convert(mode).getpixel((x, y)) or 0)
    assert (result.mode, result.tobytes()) == (mode, expected.tobytes())


async def test_an_original_can_be_its_own_mask(decoder: Decoder) -> None:
    original, made = masked(), Image.new("RGB", (48, 32), (1, 2, 3))
    content, target = file(encoded(original, "PNG")), file()
    facts = await decoder.composite(
        content, content, file(encoded(made, "PNG")), target, width=48, height=32
    )
    assert (facts.has_alpha, facts.is_transparent) == (True, False)
    with Image.open(target) as result:
        pixels = {
            (is_inside(x, y), result.getpixel((x, y)) == original.getpixel((x, y)))
            for x in range(48)
            for y in range(32)
        }
        assert pixels == {(True, False), (False, True)}
        assert result.getpixel((24, 16)) == (1, 2, 3, 255)


async def test_a_mask_without_alpha_leaves_the_original(decoder: Decoder) -> None:
    made = Image.new("RGB", (48, 32), (1, 2, 3))
    result = await composite(decoder, drawing(), drawing("L"), made)
    assert result.tobytes() == drawing().tobytes()


async def test_images_of_other_sizes_are_resampled_before_compositing(decoder: Decoder) -> None:
    original, made = drawing("RGB", (96, 64)), Image.new("RGB", (500, 500), (1, 2, 3))
    resampled = file()
    await decoder.resample(file(encoded(original, "PNG")), resampled, width=48, height=32)
    result = await composite(decoder, original, masked(), made)
    with Image.open(resampled) as outside:
        for x in range(48):
            for y in range(32):
                expected = (1, 2, 3) if is_inside(x, y) else outside.getpixel((x, y))
                assert result.getpixel((x, y)) == expected


async def test_a_thumbnail_is_a_small_upright_webp(decoder: Decoder) -> None:
    photograph = encoded(drawing("RGB", (480, 320)), "JPEG", exif=exif(6))
    target = file()
    facts = await decoder.thumbnail(file(photograph), target, max_edge=96)
    size_bytes = os.fstat(target.fileno()).st_size
    assert facts == ImageFacts(
        "image/webp", 64, 96, size_bytes, has_alpha=False, is_transparent=False
    )
    with Image.open(target) as thumbnail:
        upright = ImageOps.exif_transpose(opened(photograph)).resize((64, 96))
        difference = ImageStat.Stat(ImageChops.difference(thumbnail, upright))
    assert max(difference.mean) < 8, "its red corner is not on the right"


async def test_a_thumbnail_is_never_larger_than_its_image(decoder: Decoder) -> None:
    facts = await decoder.thumbnail(file(GOOD), file(), max_edge=1000)
    assert (facts.width, facts.height) == (48, 32)


async def test_sizes_beyond_the_limits_are_a_mistake_of_the_caller(decoder: Decoder) -> None:
    for width, height in ((0, 1), (1, -1), (16385, 1), (7000, 7000)):
        with pytest.raises(ValueError, match="beyond"):
            await decoder.resample(file(GOOD), file(), width=width, height=height)
