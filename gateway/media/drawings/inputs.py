"""Input images of an edit, and their composition with the sandbox's drawing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from gateway.media.drawings.canvas import WHITE, Colour

PixelReader = Callable[[bytes, int, int], Image.Image]
"""Decodes a file to RGBA: its centre, scaled to fill the given width and height."""

PHOTO_SHARE = 0.6
"""Without a mask: opacity of the first input over the drawing, 0 to 1."""
NUDGE = 4
"""Change, of 255, applied to every colour value outside a mask."""
PLATE_SHADE = 170
STRIP_SHARE = 0.16
"""The side of a further input's thumbnail, in short sides of the image."""
MARGIN_SHARE = 0.03


@dataclass(frozen=True)
class EditInputs:
    """The input images of an edit, all RGBA; `first` has the size of the output image.

    `area`, of mode L, is 255 where the first input is to change (None: there is no mask). `others`
    are the further inputs, as small squares.
    """

    first: Image.Image
    area: Image.Image | None
    markup: Image.Image | None
    others: tuple[Image.Image, ...]


def open_inputs(
    files: Sequence[bytes],
    read: PixelReader,
    *,
    mask: bytes | None,
    markup: bytes | None,
    size: tuple[int, int],
) -> EditInputs:
    """Read the files of an edit, at least one."""
    first, *others = files
    side = _strip_side(size, len(others))
    area = None
    if mask is not None:
        clear = [255] + [0] * 255
        area = read(mask, *size).getchannel("A").point(clear)
    return EditInputs(
        first=read(first, *size),
        area=area,
        markup=None if markup is None else read(markup, *size),
        others=tuple(read(other, side, side) for other in others),
    )


def work_in(
    scene: Image.Image, inputs: EditInputs, *, index: int, plate_top: int, plate_colour: Colour
) -> Image.Image:
    """Return the first input with the scene in the masked area, or blended over all of it.

    A transparent scene cuts the image out. The caption is printed below `plate_top`.
    """
    coverage = scene.getchannel("A") if scene.mode == "RGBA" else None
    drawn = scene.convert("RGB")
    photo = drawn.copy()
    photo.paste(inputs.first, mask=inputs.first)
    if inputs.markup is not None:
        photo.paste(inputs.markup, mask=inputs.markup)
    if inputs.area is None:
        image = Image.blend(drawn, photo, PHOTO_SHARE)
    else:
        # To the GPT models a mask is a hint: they redraw the whole image. So every pixel outside it
        # changes here too, which tests that the gateway itself keeps its promise of an exact mask.
        # It depends on the index so that images differ even if the area is empty.
        image = Image.composite(drawn, _nudged(photo, NUDGE + index), inputs.area)
    _darken(image, plate_top, plate_colour)
    _paste_strip(image, coverage, inputs.others)
    if coverage is not None:
        image.putalpha(coverage)
    return image


def _nudged(image: Image.Image, by: int) -> Image.Image:
    table = [value + by if value < 128 else value - by for value in range(256)]
    return image.point(table * 3)


def _darken(image: Image.Image, top: int, colour: Colour) -> None:
    """Draw a translucent plate under the white caption, so that it is legible on any input."""
    height = image.height - top
    fade = max(1, height // 4)
    ramp = Image.new("L", (1, height), PLATE_SHADE)
    for y in range(fade):
        ramp.putpixel((0, y), PLATE_SHADE * y // fade)
    image.paste(colour, (0, top, *image.size), ramp.resize((image.width, height)))


def _strip_side(size: tuple[int, int], count: int) -> int:
    """Return the side of each of `count` small images, so that all of them fit into one row."""
    unit = min(size)
    room = (size[0] - unit * MARGIN_SHARE) / max(1, count) - unit * MARGIN_SHARE
    return max(1, round(min(unit * STRIP_SHARE, room)))


def _paste_strip(
    image: Image.Image, coverage: Image.Image | None, others: Sequence[Image.Image]
) -> None:
    """Draw the further inputs in the upper left corner, in their order, each on a white card."""
    margin = round(min(image.size) * MARGIN_SHARE)
    left = margin
    for other in others:
        card = Image.new("RGB", other.size, WHITE)
        card.paste(other, mask=other)
        card = ImageOps.expand(card, margin // 8, WHITE)
        box = (left, margin, left + card.width, margin + card.height)
        image.paste(card, box)
        if coverage is not None:
            coverage.paste(255, box)
        left += other.width + margin
