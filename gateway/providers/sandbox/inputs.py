"""What an edit brings along, and how the sandbox works it into a picture."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image, ImageOps

from gateway.providers.sandbox.canvas import WHITE, Colour

PixelReader = Callable[[BinaryIO, int, int], Awaitable[bytes]]
"""Raw RGBA of a picture that fills the width and height given: strangers' files are decoded where
they can do no harm, and not here."""

PHOTO_SHARE = 0.6
"""Without a mask: how much of the first input shows through the drawing, 0 to 1."""
NUDGE = 4
"""By how much, of 255, every colour value outside a mask is moved."""
PLATE_SHADE = 170
STRIP_SHARE = 0.16
"""The side of a small picture, and of the margin around them, in short sides of the image."""
MARGIN_SHARE = 0.03


@dataclass(frozen=True)
class Inputs:
    """An edit's pictures, all RGBA, the first of them at the size of the image to be made.

    `area`, of mode L, is 255 where the first input is to change (None: nowhere in particular).
    `others` are the further inputs, square and small.
    """

    first: Image.Image
    area: Image.Image | None
    markup: Image.Image | None
    others: tuple[Image.Image, ...]


async def open_inputs(
    files: Sequence[BinaryIO],
    read_pixels: PixelReader,
    *,
    mask: BinaryIO | None,
    markup: BinaryIO | None,
    size: tuple[int, int],
) -> Inputs:
    """Reads the files of an edit; one at least."""

    async def read(file: BinaryIO, width: int, height: int) -> Image.Image:
        return Image.frombytes("RGBA", (width, height), await read_pixels(file, width, height))

    first, *others = files
    side = _strip_side(size, len(others))
    area = None
    if mask is not None:
        clear = [255] + [0] * 255
        area = (await read(mask, *size)).getchannel("A").point(clear)
    return Inputs(
        first=await read(first, *size),
        area=area,
        markup=None if markup is None else await read(markup, *size),
        others=tuple([await read(other, side, side) for other in others]),
    )


def work_in(
    scene: Image.Image, inputs: Inputs, *, index: int, plate_top: int, plate_colour: Colour
) -> Image.Image:
    """Returns the first input with the scene in the masked area, or blended over all of it.

    A transparent scene cuts the picture out. The caption will stand below `plate_top`.
    """
    coverage = scene.getchannel("A") if scene.mode == "RGBA" else None
    drawn = scene.convert("RGB")
    photo = drawn.copy()
    photo.paste(inputs.first, mask=inputs.first)
    if inputs.markup is not None:
        photo.paste(inputs.markup, mask=inputs.markup)
    if inputs.area is None:
        picture = Image.blend(drawn, photo, PHOTO_SHARE)
    else:
        # To the GPT models a mask is a hint: they paint the whole picture anew. So not one pixel
        # outside it stays as it was, and where a client was promised that it would, the gateway
        # has to see to it itself. By the index, because the area may be empty.
        picture = Image.composite(drawn, _nudged(photo, NUDGE + index), inputs.area)
    _darken(picture, plate_top, plate_colour)
    _paste_strip(picture, coverage, inputs.others)
    if coverage is not None:
        picture.putalpha(coverage)
    return picture


def _nudged(picture: Image.Image, by: int) -> Image.Image:
    table = [value + by if value < 128 else value - by for value in range(256)]
    return picture.point(table * 3)


def _darken(picture: Image.Image, top: int, colour: Colour) -> None:
    """Lays a translucent plate under the caption, which is white whatever the input's colours."""
    height = picture.height - top
    fade = max(1, height // 4)
    ramp = Image.new("L", (1, height), PLATE_SHADE)
    for y in range(fade):
        ramp.putpixel((0, y), PLATE_SHADE * y // fade)
    picture.paste(colour, (0, top, *picture.size), ramp.resize((picture.width, height)))


def _strip_side(size: tuple[int, int], count: int) -> int:
    """The side of each of `count` small pictures, so that all of them fit into one row."""
    unit = min(size)
    room = (size[0] - unit * MARGIN_SHARE) / max(1, count) - unit * MARGIN_SHARE
    return max(1, round(min(unit * STRIP_SHARE, room)))


def _paste_strip(
    picture: Image.Image, coverage: Image.Image | None, others: Sequence[Image.Image]
) -> None:
    """Shows the further inputs in the upper left corner, in their order, each on a white card."""
    margin = round(min(picture.size) * MARGIN_SHARE)
    left = margin
    for other in others:
        card = Image.new("RGB", other.size, WHITE)
        card.paste(other, mask=other)
        card = ImageOps.expand(card, margin // 8, WHITE)
        box = (left, margin, left + card.width, margin + card.height)
        picture.paste(card, box)
        if coverage is not None:
            coverage.paste(255, box)
        left += other.width + margin
