"""Limits, files and processes of a decoder, for the tests of decoding."""

import io
import tempfile
from typing import BinaryIO

import psutil  # type: ignore[import-untyped]  # ships without types
import pytest
from PIL import Image

from gateway.media.decoder import (
    Decoder,
    DecoderLimits,
    ImageFacts,
    ImageProblem,
    UnusableImage,
)
from tests.hazards import MAX_PIXELS, drawing, encoded

LIMITS = DecoderLimits(
    processes=1,
    job_seconds=60,
    queue_seconds=60,
    max_pixels=MAX_PIXELS,
    memory_bytes=768 * 1024 * 1024,
)
GOOD = encoded(drawing(), "PNG")
GOOD_IMAGE = ImageFacts("image/png", 48, 32, len(GOOD), has_alpha=False, is_transparent=False)


def file(content: bytes = b"") -> BinaryIO:
    made = tempfile.TemporaryFile()  # noqa: SIM115 - closed when nothing refers to it
    made.write(content)
    return made


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def processes() -> list[psutil.Process]:
    """The decoder processes of this test run, in no order."""
    children = psutil.Process().children()
    return [child for child in children if "gateway.media.decoder_process" in child.cmdline()]


async def clean(decoder: Decoder, content: bytes) -> tuple[ImageFacts, bytes]:
    target = file()
    image = await decoder.clean(file(content), target)
    assert target.tell() == 0
    return image, target.read()


async def problem(decoder: Decoder, content: bytes) -> ImageProblem:
    with pytest.raises(UnusableImage) as refused:
        await clean(decoder, content)
    return refused.value.problem


async def started(decoder: Decoder) -> psutil.Process:
    """The one process of a decoder, after its first job."""
    before = set(processes())
    assert await clean(decoder, GOOD) == (GOOD_IMAGE, GOOD)
    (process,) = set(processes()) - before
    return process
