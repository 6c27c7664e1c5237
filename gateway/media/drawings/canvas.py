"""Drawing primitives of the sandbox's images: shapes with smooth edges."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Canvas:
    """An image being painted, and its visible area as a mask (None: everything)."""

    image: Image.Image
    coverage: Image.Image | None

    @property
    def unit(self) -> int:
        """The short side in pixels; shapes scale with it, so all aspect ratios look alike."""
        return min(self.image.size)

    def stamp(self, fill: Colour | Image.Image, mask: Image.Image, at: tuple[int, int]) -> None:
        """Paint `fill` (a colour, or an image of the mask's size) through `mask` at `at`."""
        box = (*at, at[0] + mask.width, at[1] + mask.height)
        self.image.paste(fill, box, mask)
        if self.coverage is not None:
            self.coverage.paste(255, box, mask)


def paint_ellipse(
    canvas: Canvas, fill: Colour, centre: tuple[float, float], radius: float, shade: int
) -> None:
    """Paint a circle with smooth edges; `shade` is its opacity, 0 to 255."""
    side = math.ceil(radius * 2) + 2
    left, top = math.floor(centre[0] - side / 2), math.floor(centre[1] - side / 2)
    x, y = (centre[0] - left) * 2, (centre[1] - top) * 2

    def paint(pen: ImageDraw.ImageDraw) -> None:
        pen.ellipse((x - radius * 2, y - radius * 2, x + radius * 2, y + radius * 2), fill=shade)

    canvas.stamp(fill, smooth_mask((side, side), paint), (left, top))


def paint_bars(
    canvas: Canvas, fill: Colour, bars: list[Box], shade: int, at: tuple[int, int]
) -> None:
    """Paint bars with round ends; each is left, top, right and bottom in pixels from `at`."""

    def paint(pen: ImageDraw.ImageDraw) -> None:
        for left, top, right, bottom in bars:
            # The pen includes the last row and column.
            box = (left * 2, top * 2, right * 2 - 1, bottom * 2 - 1)
            if box[2] > box[0] and box[3] > box[1]:
                pen.rounded_rectangle(box, radius=(box[3] - box[1]) / 2, fill=shade)

    size = math.ceil(max(bar[2] for bar in bars)) + 1, math.ceil(max(bar[3] for bar in bars)) + 1
    canvas.stamp(fill, smooth_mask(size, paint), at)


def smooth_mask(size: tuple[int, int], paint: Callable[[ImageDraw.ImageDraw], None]) -> Image.Image:
    """Return an L mask; `paint` draws at twice the size, because pens leave jagged edges."""
    mask = Image.new("L", (size[0] * 2, size[1] * 2))
    paint(ImageDraw.Draw(mask))
    return mask.reduce(2)


def parse_colour(code: str) -> Colour:
    """Parse a colour of six hex digits."""
    red, green, blue = bytes.fromhex(code)
    return red, green, blue


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """Return the colour that is `share` (0 to 1) of the way from `one` to `other`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def fade_between(one: Colour, other: Colour, height: int) -> Image.Image:
    """Return a column of pixels that fades from `one` at its top to `other`."""
    ends = Image.frombytes("RGB", (1, 2), bytes((*one, *other)))
    # From the middle of the first pixel to that of the second one, nothing is flat.
    return ends.resize((1, height), Image.Resampling.BILINEAR, box=(0, 0.5, 1, 1.5))
