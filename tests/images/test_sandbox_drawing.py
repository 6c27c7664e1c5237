"""The sandbox's images: as requested, always the same, and never a crash."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from gateway.media.drawings.drawing import OutputFormat, encode, paint

SIZES = [
    (1024, 1024),
    (1536, 1024),
    (816, 816),
    (3840, 2160),
    (656, 1968),
    (1968, 656),
    (16, 16),
    (160, 160),
]
HOSTILE_PROMPTS = {
    "empty": "",
    "blank": " \n\t ",
    "long": "a quiet sea at night, " * 1_455,
    "one long word": "x" * 32_000,
    "emoji": "🦊🌲👩‍👩‍👧‍👦 fox 🏳️‍🌈",
    "right to left": "غروب الشمس فوق البحر \u202eabc",
    "chinese": "海辺の夕焼け",
    "newlines": "one\r\ntwo\n\n\nthree\u2028four",
    "control": "".join(map(chr, range(32))) + "\x7f\x80\ufeff\uffff",
    "lone surrogate": "broken \ud83d text",
    "combining": "z" + "\u0301" * 5_000,
    "expanding ligature": "\ufdfa" * 5_000,
}


def draw(
    prompt: str = "A red fox in the forest",
    *,
    index: int = 0,
    size: tuple[int, int] = (256, 256),
    output_format: OutputFormat = "png",
    transparent: bool = False,
    compression: int | None = None,
) -> bytes:
    image = paint(prompt, index=index, size=size, transparent=transparent)
    return encode(image, output_format, compression)


def load(file: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_image_has_exactly_the_size_and_format_asked_for(
    size: tuple[int, int], output_format: OutputFormat
) -> None:
    image = load(draw(size=size, output_format=output_format))
    assert (image.size, image.format, image.mode) == (size, output_format.upper(), "RGB")


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_the_same_arguments_give_the_same_bytes(output_format: OutputFormat) -> None:
    assert draw(output_format=output_format) == draw(output_format=output_format)


def test_another_process_gives_the_same_bytes() -> None:
    script = (
        "import sys; from gateway.media.drawings.drawing import encode, paint; "
        "image = paint('Tea', index=1, size=(256, 256), transparent=False); "
        "sys.stdout.buffer.write(encode(image, 'png', None))"
    )
    other = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert other.stdout == draw("Tea", index=1)


def test_prompts_and_indexes_give_different_images() -> None:
    # None of the scripts here can be printed, so only the images can differ.
    prompts = ["猫", "犬", "鳥", "Привет"]
    files = {draw(prompt, index=index) for prompt in prompts for index in range(4)}
    assert len(files) == 16


def test_the_prompt_is_printed() -> None:
    def count_white(image: Image.Image) -> int:
        corner = image.crop((0, image.height * 3 // 4, image.width, image.height))
        return corner.convert("L").histogram()[255]

    size = (512, 512)
    assert count_white(load(draw("Night owl", size=size))) > 100
    assert count_white(load(draw("夜", size=size))) == 0


def test_a_colour_in_the_prompt_sets_the_palette() -> None:
    red = load(draw("a RED balloon")).resize((1, 1)).getpixel((0, 0))
    blue = load(draw("a blue balloon")).resize((1, 1)).getpixel((0, 0))
    assert isinstance(red, tuple)
    assert isinstance(blue, tuple)
    assert red[0] > red[2]
    assert blue[2] > blue[0]


@pytest.mark.parametrize("output_format", ["png", "webp"])
@pytest.mark.parametrize("size", [(512, 512), (3840, 2160)], ids=["small", "large"])
def test_a_transparent_background_leaves_the_ground_clear(
    output_format: OutputFormat, size: tuple[int, int]
) -> None:
    image = load(draw(size=size, output_format=output_format, transparent=True))
    levels = image.getchannel("A").histogram()
    assert (image.mode, image.size) == ("RGBA", size)
    assert levels[0] > size[0] * size[1] // 10
    assert levels[255] > size[0] * size[1] // 10


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_more_compression_quality_makes_a_larger_file(output_format: OutputFormat) -> None:
    sizes = [len(draw(output_format=output_format, compression=q)) for q in (0, 50, 100)]
    assert sizes == sorted(set(sizes))
    assert draw(output_format=output_format) == draw(output_format=output_format, compression=100)


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("prompt", HOSTILE_PROMPTS.values(), ids=HOSTILE_PROMPTS.keys())
def test_hostile_prompts_are_drawn(prompt: str, *, transparent: bool) -> None:
    assert load(draw(prompt, transparent=transparent)).size == (256, 256)
