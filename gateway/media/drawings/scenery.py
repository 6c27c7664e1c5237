"""Scenery of the sandbox's images: layered landscapes, chosen by the prompt's words."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random

from PIL import Image

from gateway.media.drawings.canvas import (
    WHITE,
    Canvas,
    Colour,
    fade_between,
    mix,
    paint_bars,
    paint_ellipse,
    smooth_mask,
)

Points = list[tuple[float, float]]
Ridge = Callable[[float], float]
"""Height of a crest, 0 (valley) to 1 (top), at a distance measured in short sides of the image."""

NIGHT_SUM_MAX = 100
PALETTES = {
    "sunset sunrise dusk dawn evening orange autumn": "35356b cf5f7c ffc785 fff1cf b9597c 21173a",
    "sea ocean beach wave waves water lake boat fish": "4fa3d1 a5d8e6 fdf0d2 fffaf0 5fb0c8 0b3150",
    "forest tree trees woods pine green garden fox": "a9d0c3 dbe9cc fdf3cf fffceb 94bfa0 0f2f2a",
    "night moon stars space dark black owl astronaut": "0a0f2e 232b66 6a629f f8f2dc 454a8c 070a1f",
    "desert sand dunes brown coffee cat dog lion": "e9a178 f6cda2 fff0d6 fffaf0 dd9a6c 4a1f24",
    "snow snowy winter ice white mountains gray grey": "8fadd1 cbdcee fdeee4 ffffff a9c0da 1f3856",
    "red ruby blood dragon rose": "5c1235 c8354b ffa581 ffe9cf a82c4b 2a0718",
    "blue sapphire sky bird rain": "1d4f9f 5a9fe0 cfe9ff ffffff 4d8ccf 081f49",
    "purple violet lavender magic": "3d2c7c 8f6ac6 f3c6e2 fff2e6 7c5bb0 1a103c",
    "pink flower flowers cherry blossom": "ee8fae fac3cb fff1e2 fffaf2 e08aa6 521c42",
    "yellow gold golden sun sunny summer": "f5b041 fbd786 fff6da fffdf2 e0a54e 4a2a12",
    "teal turquoise cyan mint": "1f7a83 6cc0b7 f4ecc8 fffbe8 4c9fa0 092f38",
}
"""Colours, in the order of the fields of Palette, by the words of a prompt that ask for them."""
RIDGES = {
    "sea ocean beach wave waves water lake river boat ship fish whale island surf": "waves",
    "forest tree trees wood woods jungle pine fox bear owl": "trees",
    "mountain mountains snow snowy winter ice dragon alps": "peaks",
    "desert sand dune dunes garden flower flowers grass": "hills",
}
"""Kinds of land, by the words of a prompt that ask for them."""


@dataclass(frozen=True)
class Palette:
    """Colours of one mood: the sky from top to horizon, the disc, the land far and near.

    `near` is dark in every palette, because the white caption stands on it.
    """

    sky_top: Colour
    sky_middle: Colour
    sky_low: Colour
    disc: Colour
    far: Colour
    near: Colour

    @property
    def is_night(self) -> bool:
        """True if the sky is dark enough for stars."""
        return sum(self.sky_top) < NIGHT_SUM_MAX


def choose(table: Mapping[str, str], words: Iterable[str], dice: Random) -> str:
    """Return the entry of the first word that the table's keys name, otherwise a random entry."""
    anything = dice.choice(tuple(table.values()))
    named = {word: entry for key, entry in table.items() for word in key.split()}
    return next((named[word] for word in words if word in named), anything)


def paint_scene(
    size: tuple[int, int],
    *,
    palette: Palette,
    ridge_kind: str,
    floor: float,
    transparent: bool,
    dice: Random,
) -> Image.Image:
    """Return an RGB image, RGBA if `transparent`: a sky, a disc and layers of land.

    The nearest land reaches from the bottom at least up to `floor`, a fraction of the height.
    """
    coverage = Image.new("L", size) if transparent else None
    canvas = Canvas(paint_sky(size, palette, dice), coverage)
    horizon = min(dice.uniform(0.52, 0.6), floor - 0.08)
    if palette.is_night:
        paint_stars(canvas, horizon, dice)
    else:
        paint_clouds(canvas, horizon, dice)
    water = ridge_kind == "waves"
    # Hills rise above the horizon and would hide a disc that stands right on it.
    rise = 0 if water else canvas.unit * 0.1 / size[1]
    disc_x = paint_disc(canvas, palette, horizon - rise, dice)
    shine_x = disc_x if water else None
    paint_land(canvas, palette, ridge_kind, (horizon, floor), shine_x, dice)
    if canvas.coverage is not None:
        canvas.image.putalpha(canvas.coverage)
    return canvas.image


def paint_sky(size: tuple[int, int], palette: Palette, dice: Random) -> Image.Image:
    """Return a soft gradient: a few pixels, slightly uneven from side to side, enlarged."""
    sky = palette.sky_top, palette.sky_middle, palette.sky_low
    lean = dice.uniform(-0.16, 0.16)
    seedling = Image.new("RGB", (3, 7))
    for x in range(3):
        for y in range(7):
            # The horizon's colour is reached at two thirds, since land hides the part below.
            depth = min(max((y / 6) * 1.4 + lean * (x - 1), 0.0), 1.0) * 2
            upper = min(int(depth), 1)
            seedling.putpixel((x, y), mix(sky[upper], sky[upper + 1], depth - upper))
    return seedling.resize(size, Image.Resampling.BICUBIC)


def paint_stars(canvas: Canvas, horizon: float, dice: Random) -> None:
    """Scatter small stars over the sky, fewer and fainter towards the horizon."""
    width, height = canvas.image.size
    for _ in range(round(70 * max(width, height) / canvas.unit)):
        depth = dice.random() ** 1.5
        radius = canvas.unit * dice.choice((0.0012, 0.0016, 0.0022, 0.0034))
        shade = round(255 * dice.uniform(0.35, 1.0) * (1 - depth * 0.8))
        paint_ellipse(
            canvas, WHITE, (dice.random() * width, depth * horizon * height), radius, shade
        )


def paint_disc(canvas: Canvas, palette: Palette, horizon: float, dice: Random) -> float:
    """Paint a sun or moon, with its glow, inside translucent rings; return its centre's x."""
    width, height = canvas.image.size
    colour = palette.disc
    radius = canvas.unit * dice.uniform(0.1, 0.15)
    centre = (
        width * dice.choice((dice.uniform(0.26, 0.42), dice.uniform(0.58, 0.74))),
        height * horizon - radius * dice.uniform(0.1, 1.5),
    )
    # Over nothing, rings cut off by the image's edge would look like a mistake.
    spread = 0.8 if canvas.coverage is None else 0.4
    for ring, shade in ((3, 20), (2, 26), (1, 34)):
        paint_ellipse(canvas, colour, centre, radius * (1 + ring * spread), shade)
    if canvas.coverage is None:
        # A glow needs a ground to shine on; over nothing it would look like dirt.
        side = round(radius * 7)
        fade = Image.radial_gradient("L").point([max(0, 150 - shade) for shade in range(256)])
        glow = fade.resize((side, side), Image.Resampling.BICUBIC)
        canvas.stamp(colour, glow, (round(centre[0] - side / 2), round(centre[1] - side / 2)))
    paint_ellipse(canvas, colour, centre, radius, 250)
    return centre[0]


def paint_clouds(canvas: Canvas, horizon: float, dice: Random) -> None:
    """Paint a few translucent clouds: three rounded bars each, the middle one the longest."""
    width, height = canvas.image.size
    for _ in range(dice.randint(2, 4)):
        bar = canvas.unit * dice.uniform(0.014, 0.02)
        span = bar * dice.uniform(10, 16)
        at = (dice.uniform(-0.05, 0.9) * width, dice.uniform(0.08, 0.7) * horizon * height)
        top, low = dice.uniform(0.2, 0.4), dice.uniform(0.1, 0.5)
        rows = ((0.0, top, top + 0.4), (1.0, 0.0, 1.0), (2.0, low, low + 0.45))
        bars = [(start * span, row * bar, end * span, (row + 1) * bar) for row, start, end in rows]
        paint_bars(canvas, WHITE, bars, 84, (round(at[0]), round(at[1])))


def paint_shine(canvas: Canvas, colour: Colour, at: tuple[float, float], dice: Random) -> None:
    """Paint the disc's reflection on water: bars that spread out from the horizon at `at`."""
    bar = canvas.unit * 0.0055
    reach = canvas.unit * 0.17
    bars = []
    for row in range(9):
        half = reach * (0.35 + 0.07 * row) * dice.uniform(0.55, 1.0)
        middle = reach * (1 + dice.uniform(-0.12, 0.12))
        y = bar * (1.5 + row * (2.2 + row * 0.12))
        bars.append((middle - half, y, middle + half, y + bar))
    paint_bars(canvas, colour, bars, 150, (round(at[0] - reach), round(at[1])))


def paint_land(
    canvas: Canvas,
    palette: Palette,
    kind: str,
    span: tuple[float, float],
    shine_x: float | None,
    dice: Random,
) -> None:
    """Paint layers of land from the horizon (`span[0]`) to the nearest (`span[1]`).

    With `shine_x`, the farthest is flat water that reflects the disc above that x.
    """
    width, height = canvas.image.size
    unit = canvas.unit
    step = max(2, unit // 340)
    layers = 5
    for layer in range(layers):
        depth = layer / (layers - 1)
        if shine_x is not None and layer > 0:
            # Open water needs room for the reflection.
            depth = 0.14 + 0.86 * depth
        crest = (span[0] + (span[1] - span[0]) * depth**1.15) * height
        flat = shine_x is not None and layer == 0
        relief = 0.0 if flat else unit * (0.17 - 0.09 * depth)
        ridge = make_ridge(kind, depth, dice)
        outline: Points = [
            (x, crest - relief * ridge(x / unit)) for x in range(-4, width + unit // 8 + 8, step)
        ]
        if kind == "trees" and layer >= 2:
            outline = plant_trees(outline, unit * (0.02 + 0.05 * depth), dice)
        colour = mix(palette.far, palette.near, depth**0.9)
        foot = mix(colour, palette.sky_low, 0.42 * (1 - depth))
        paint_layer(canvas, outline, colour, foot)
        if flat and shine_x is not None:
            paint_shine(canvas, palette.disc, (shine_x, crest), dice)


def paint_layer(canvas: Canvas, outline: Points, colour: Colour, foot: Colour) -> None:
    """Fill everything below `outline`, from `colour` at the crest to `foot` further down."""
    width, height = canvas.image.size
    top = min(max(math.floor(min(y for _, y in outline)), 0), height - 1)
    solid = min(max(math.ceil(max(y for _, y in outline)), top + 1), height)
    shape = [(x * 2, (y - top) * 2) for x, y in outline]
    shape += [(shape[-1][0], height * 2), (shape[0][0], height * 2)]
    mask = smooth_mask((width, solid - top), lambda pen: pen.polygon(shape, fill=255))
    fade = max(1, min(height - top, round(canvas.unit * 0.34)))
    ramp = Image.new("RGB", (1, height - top), foot)
    ramp.paste(fade_between(colour, foot, fade))
    fill = ramp.resize((width, height - top), Image.Resampling.NEAREST)
    canvas.stamp(fill.crop((0, 0, *mask.size)), mask, (0, top))
    # Below the lowest point of the crest nothing shows through, which saves most of the mask.
    canvas.image.paste(fill.crop((0, solid - top, *fill.size)), (0, solid))
    if canvas.coverage is not None:
        canvas.coverage.paste(255, (0, solid, width, height))


def make_ridge(kind: str, depth: float, dice: Random) -> Ridge:
    """Return a crest; nearer land (`depth` towards 1) is broader than distant land."""
    phases = [dice.uniform(0, math.tau) for _ in range(3)]
    stretch = dice.uniform(0.85, 1.15) * (1.35 - 0.5 * depth)

    def hills(x: float) -> float:
        x *= stretch
        swing = math.sin(x * 4.1 + phases[0]) + 0.5 * math.sin(x * 7.3 + phases[1])
        return 0.5 + (swing + 0.12 * math.sin(x * 17 + phases[2])) / 3.24

    def waves(x: float) -> float:
        x *= stretch * (1.8 - 0.6 * depth)
        # The sine inside a sine leans each wave to one side, as if it were about to break.
        lean = x * 9 + phases[0] + 0.75 * math.sin(x * 9 + phases[0])
        return 0.16 + 0.15 * math.sin(lean) + 0.08 * math.sin(x * 2.3 + phases[1])

    def peaks(x: float) -> float:
        x *= stretch
        total = 0.0
        for phase, pitch, share in zip(phases, (1.3, 3.1, 8.7), (0.85, 0.38, 0.1), strict=True):
            total += share * abs(((x * pitch + phase) % 1) * 2 - 1)
        return total

    return {"waves": waves, "peaks": peaks}.get(kind, hills)


def plant_trees(outline: Points, tall: float, dice: Random) -> Points:
    """Return the outline with firs of about `tall` pixels standing on it."""
    left = [(-1.0, 0.1), (-0.45, -0.38), (-0.7, -0.38), (-0.3, -0.7), (-0.42, -0.7)]
    fir = [*left, (0.0, -1.1), *((-dx, dy) for dx, dy in reversed(left))]
    planted: Points = []
    clear = outline[0][0]
    for x, y in outline:
        if x < clear:
            continue
        size = tall * dice.uniform(0.6, 1.35)
        half = size * 0.22
        planted += [(x + half + dx * half, y + dy * size) for dx, dy in fir]
        clear = x + half * dice.choice((1.5, 1.8, 2.0, 2.4, 5.0))
    return planted
