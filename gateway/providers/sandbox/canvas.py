"""The brush strokes that the sandbox's pictures are made of: shapes with smooth edges."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Canvas:
    """A picture being painted, and what of it is visible (None: everything)."""

    picture: Image.Image
    coverage: Image.Image | None

    @property
    def unit(self) -> int:
        """The short side in pixels: shapes are sized by it, so every aspect ratio looks alike."""
        return min(self.picture.size)

    def stamp(self, fill: Colour | Image.Image, mask: Image.Image, at: tuple[int, int]) -> None:
        """Paints `fill` (a colour, or a picture of the mask's size) through `mask` at `at`."""
        box = (*at, at[0] + mask.width, at[1] + mask.height)
        self.picture.paste(fill, box, mask)
        if self.coverage is not None:
            self.coverage.paste(255, box, mask)


def paint_ellipse(
    canvas: Canvas, fill: Colour, centre: tuple[float, float], radius: float, shade: int
) -> None:
    """Paints a circle with smooth edges; `shade` is its opacity, 0 to 255."""
    side = math.ceil(radius * 2) + 2
    left, top = math.floor(centre[0] - side / 2), math.floor(centre[1] - side / 2)
    x, y = (centre[0] - left) * 2, (centre[1] - top) * 2

    def paint(pen: ImageDraw.ImageDraw) -> None:
        pen.ellipse((x - radius * 2, y - radius * 2, x + radius * 2, y + radius * 2), fill=shade)

    canvas.stamp(fill, smooth_mask((side, side), paint), (left, top))


def paint_bars(
    canvas: Canvas, fill: Colour, bars: list[Box], shade: int, at: tuple[int, int]
) -> None:
    """Paints bars with round ends; each is left, top, right and bottom in pixels from `at`."""

    def paint(pen: ImageDraw.ImageDraw) -> None:
        for left, top, right, bottom in bars:
            # The pen includes the last row and column.
            box = (left * 2, top * 2, right * 2 - 1, bottom * 2 - 1)
            if box[2] > box[0] and box[3] > box[1]:
                pen.rounded_rectangle(box, radius=(box[3] - box[1]) / 2, fill=shade)

    size = math.ceil(max(bar[2] for bar in bars)) + 1, math.ceil(max(bar[3] for bar in bars)) + 1
    canvas.stamp(fill, smooth_mask(size, paint), at)


def smooth_mask(size: tuple[int, int], paint: Callable[[ImageDraw.ImageDraw], None]) -> Image.Image:
    """Returns an L mask; `paint` gets a pen on twice the size, because pens leave jagged edges."""
    mask = Image.new("L", (size[0] * 2, size[1] * 2))
    paint(ImageDraw.Draw(mask))
    return mask.reduce(2)


def parse_colour(code: str) -> Colour:
    """Returns the colour of six hex digits."""
    red, green, blue = bytes.fromhex(code)
    return red, green, blue


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """Returns the colour that is `share` (0 to 1) of the way from `one` to `other`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue
