"""Reading of a diffusers server's answer, whatever its shape: the first image in it. Pure.

Images come as raw bytes, as base64 under many names, as data URLs, inside JSON inside BYTES, and
as tensors of pixels. A link in an answer is never followed.
"""

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pybase64
from PIL import Image

from gateway.domain import ImageRequest
from gateway.provider_answers import Outcome, ProviderAnswer, ProviderReply
from gateway.providers.base import ProviderFailure, Reason
from gateway.providers.image_sizes import ImageHeader, read_image_header
from gateway.providers.values import identified, optional_text, parse_loosely

MAX_IMAGE_BYTES = 52_428_800
MAX_PIXEL_VALUES = 50_331_648
"""4096 x 4096 in three colours."""
MAX_DEPTH = 12
MAX_VALUES = 20_000
MIN_BASE64_CHARACTERS = 40
PREFERRED = (
    *("predictions", "outputs", "instances", "images", "image", "b64", "image_data"),
    *("bytesBase64Encoded", "b64_json", "data"),
)
"""Where images are, the most specific first. Other names are searched after these: an answer may
repeat the input image of an edit under one of them."""
COLOURS = 3
BRIGHTEST = 255


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image as base64 text, and the facts of its first bytes."""

    base64: str
    header: ImageHeader


def read_answer(
    content: bytes, request: ImageRequest, *, seed: int, reply: ProviderReply | None
) -> ProviderAnswer:
    """Read the body of a 200: one image. `reply` gets the `id` that the v2 protocol has; it may
    name a `model_version` too.

    Raises:
        ProviderFailure: it holds no image; the model may have run all the same.
    """
    header, version = read_image_header(content), None
    if header is not None:
        found: FoundImage | None = FoundImage(pybase64.b64encode(content).decode(), header)
    else:
        body = _parsed(content)
        found = next(_images(body), None)
        reply = identified(reply, body, "id")
        version = optional_text(body, "model_version") if isinstance(body, Mapping) else None
    if found is None:
        raise ProviderFailure(
            Outcome.AMBIGUOUS,
            Reason.UNKNOWN,
            "The provider's answer contains no readable image.",
            reply=reply,
        )
    return ProviderAnswer(
        images=(found.base64,),
        model_version=version,
        created=0,
        usage=None,
        size=found.header.size,
        quality=request.quality,
        background=None,
        output_format=found.header.format,
        reply=reply,
        seeds=(seed,),
    )


def says_ready(content: bytes) -> bool:
    """Return False if a model's state says that it is not ready; an empty answer is good news."""
    try:
        body = parse_loosely(content)
    except ValueError:
        return True
    ready = body.get("ready", True) if isinstance(body, dict) else True
    return str(ready).lower() == "true"


def _parsed(content: bytes) -> object:
    try:
        return parse_loosely(content)
    except ValueError:
        return None


def _images(body: object) -> Iterator[FoundImage]:
    """Search depth first, at most `MAX_VALUES` values."""
    waiting: list[tuple[object, int]] = [(body, 0)]
    for _ in range(MAX_VALUES):
        if not waiting:
            return
        value, depth = waiting.pop()
        if isinstance(value, str):
            if (found := _read_text(value)) is not None:
                yield found
            elif (inner := _inner_json(value)) is not None and depth < MAX_DEPTH:
                waiting.append((inner, depth + 1))
        elif depth >= MAX_DEPTH:
            continue
        elif isinstance(value, Mapping):
            if (found := _read_tensor(value)) is not None:
                yield found
            else:
                waiting += ((one, depth + 1) for one in reversed(_members(value)))
        elif isinstance(value, list) and not _is_numbers(value):
            waiting += ((one, depth + 1) for one in reversed(value[:MAX_VALUES]))


def _members(value: Mapping[str, object]) -> list[object]:
    """Return the members in the order in which images are expected."""
    named = [value[name] for name in PREFERRED if name in value]
    return named + [one for name, one in value.items() if name not in PREFERRED]


def _is_numbers(value: list[object]) -> bool:
    return bool(value) and isinstance(value[0], int | float)


def _inner_json(text: str) -> object | None:
    """Parse a text that looks like an object or a list of JSON."""
    if text[:1] not in {"{", "["}:
        return None
    try:
        return parse_loosely(text.encode(errors="replace"))
    except ValueError:
        return None


def _read_text(text: str) -> FoundImage | None:
    """Read base64, also of a data URL, whose bytes begin as an image does."""
    if text.startswith("data:"):
        _, _, text = text.partition(",")
    if not MIN_BASE64_CHARACTERS <= len(text) <= MAX_IMAGE_BYTES * 4 // 3 + 8:
        return None
    head = text[:64]
    if not head.isascii() or " " in head.strip() or head.startswith(("{", "[", "http")):
        return None
    compact = "".join(text.split()).translate(_STANDARD).rstrip("=")
    compact += "=" * (-len(compact) % 4)
    try:
        content = pybase64.b64decode(compact, validate=True)
    except ValueError:
        return None
    header = read_image_header(content)
    return None if header is None else FoundImage(compact, header)


_STANDARD = str.maketrans("-_", "+/")
"""From the alphabet for URLs."""


def _read_tensor(value: Mapping[str, object]) -> FoundImage | None:
    """Read an output tensor of pixels, `[n, h, w, 3]` or `[n, 3, h, w]`: its first image.

    UINT8 counts from 0 to 255; floats either so or from 0 to 1.
    """
    shape, data, datatype = value.get("shape"), value.get("data"), value.get("datatype")
    if datatype not in {"UINT8", "FP32", "FP16"} or not isinstance(shape, list):
        return None
    edges = [edge for edge in shape if isinstance(edge, int) and edge > 0]
    layout = _layout(edges) if len(edges) == len(shape) else None
    if layout is None or math.prod(edges) > MAX_PIXEL_VALUES or not isinstance(data, list):
        return None
    width, height, is_planar = layout
    numbers = _flat(data)
    if len(numbers) != math.prod(edges):
        return None
    try:
        content = _bytes(numbers[: width * height * COLOURS])
    except (TypeError, ValueError, OverflowError):  # something else than such numbers
        return None
    if is_planar:
        planes = [content[i * width * height : (i + 1) * width * height] for i in range(COLOURS)]
        content = bytes(chain.from_iterable(zip(*planes, strict=True)))
    out = io.BytesIO()
    Image.frombytes("RGB", (width, height), content).save(out, "PNG")
    header = ImageHeader("png", f"{width}x{height}")
    return FoundImage(pybase64.b64encode(out.getvalue()).decode(), header)


def _bytes(pixels: list[Any]) -> bytes:
    """Return whole numbers as they are, and fractions in 255 steps. An image has a million of them.

    Raises:
        TypeError, ValueError, OverflowError: these are not numbers of pixels.
    """
    if isinstance(pixels[0], int) and isinstance(pixels[-1], int):
        with suppress(TypeError):  # fractions whose first and last happen to be whole
            return bytes(pixels)
    scale = BRIGHTEST if max(pixels) <= 1 else 1
    return bytes([round(scale * one) for one in pixels])


def _layout(edges: list[int]) -> tuple[int, int, bool] | None:
    """Return width and height, and true where the colours are planes; None for another tensor."""
    match edges[-3:]:
        case [height, width, 3]:
            return width, height, False
        case [3, height, width]:
            return width, height, True
        case _:
            return None


def _flat(data: list[object]) -> list[Any]:
    """Return the values of nested lists, as a tensor may be written."""
    values: list[Any] = data
    while values and isinstance(values[0], list):
        values = list(chain.from_iterable(values))
    return values
