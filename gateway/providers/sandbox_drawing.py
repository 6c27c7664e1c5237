"""Draws the sandbox provider's images: calm layered landscapes that cost nothing to make.

The same arguments give the same bytes in every process, so tests and retries can compare them.
"""

import hashlib
import io
import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

OutputFormat = Literal["png", "jpeg", "webp"]
Background = Literal["opaque", "transparent"]
Colour = tuple[int, int, int]
Points = list[tuple[float, float]]
Box = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Ridge = Callable[[float], float]
"""Height of a crest, 0 (valley) to 1 (top), at a distance measured in short sides of the image."""

MARK = "Image Gateway sandbox"
SCENE_PIXELS_MAX = 2_100_000
"""Larger images are painted at a fraction of their size and enlarged: it bounds time and memory."""
PROMPT_CHARS_READ = 2_000
CAPTION_CHARS_MAX = 300
CAPTION_LINES_MAX = 3
CAPTION_SIDE_MIN = 160
"""Shortest side, in pixels, on which text can still be read."""
CAPTION_GLYPHS = frozenset(map(chr, range(33, 127))) | frozenset("©«°±·»‘’“”…‹›™")
"""What Pillow's bundled font (part of Aileron) can draw; anything else would be an empty box."""
CAPTION_SPELLINGS = str.maketrans(
    {"–": "-", "—": "-", "−": "-", "ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "Ø": "O", "ł": "l"}
)
WHITE: Colour = (255, 255, 255)
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
        """Whether the sky is dark enough for stars."""
        return sum(self.sky_top) < NIGHT_SUM_MAX


@dataclass(frozen=True)
class Caption:
    """The prompt as it will be printed. `top` is the y of its first line, in image pixels."""

    lines: tuple[str, ...]
    size: float
    mark_size: float
    margin: int
    top: int


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


def draw(
    prompt: str,
    *,
    index: int,
    width: int,
    height: int,
    output_format: OutputFormat,
    background: Background,
    compression: int | None,
) -> bytes:
    """Returns an encoded image of exactly `width` by `height` pixels.

    `index` tells the images of one generation apart. `compression` is the quality, 0 to 100, of a
    jpeg or webp (None: 100); a png is lossless and ignores it. Jpeg has no alpha channel and is
    therefore always opaque.
    """
    seed = hashlib.sha256(f"{index}\n{prompt}".encode("utf-8", "surrogatepass")).digest()
    dice = Random(int.from_bytes(seed))
    words = re.findall(r"[a-z]+", prompt[:PROMPT_CHARS_READ].lower())
    palette = Palette(*map(parse_colour, choose(PALETTES, words, dice).split()))
    caption = lay_out_caption(prompt, width, height)
    transparent = background == "transparent" and output_format != "jpeg"

    shrink = max(1, math.ceil(math.sqrt(width * height / SCENE_PIXELS_MAX)))
    scene = paint_scene(
        (math.ceil(width / shrink), math.ceil(height / shrink)),
        palette=palette,
        ridge_kind=choose(RIDGES, words, dice),
        floor=(caption.top - caption.margin * 0.6) / height,
        transparent=transparent,
        dice=dice,
    )
    if scene.size != (width, height):
        scene = scene.resize((width, height), Image.Resampling.BICUBIC)
    write_caption(scene, caption)
    return encode(scene, output_format, 100 if compression is None else compression)


def encode(picture: Image.Image, output_format: OutputFormat, quality: int) -> bytes:
    """Returns the file; the fastest settings, because nobody keeps a sandbox image."""
    file = io.BytesIO()
    if output_format == "png":
        picture.save(file, "PNG", compress_level=1)
    elif output_format == "jpeg":
        # Above 95 libjpeg grows the file without a visible gain (Pillow handbook, "JPEG saving").
        picture.save(file, "JPEG", quality=min(max(quality, 1), 95))
    else:
        picture.save(file, "WEBP", quality=min(max(quality, 1), 100), method=0)
    return file.getvalue()


def choose(table: Mapping[str, str], words: Iterable[str], dice: Random) -> str:
    """Returns the entry of the first word that the table's keys name, otherwise any entry."""
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
    """Returns an RGB picture, RGBA if `transparent`: a sky, a disc and layers of land.

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
        canvas.picture.putalpha(canvas.coverage)
    return canvas.picture


def paint_sky(size: tuple[int, int], palette: Palette, dice: Random) -> Image.Image:
    """Returns a soft gradient: a few pixels, slightly uneven from side to side, enlarged."""
    sky = palette.sky_top, palette.sky_middle, palette.sky_low
    lean = dice.uniform(-0.16, 0.16)
    seedling = Image.new("RGB", (3, 7))
    for x in range(3):
        for y in range(7):
            # The horizon's colour is reached at two thirds, since land hides what is below.
            depth = min(max((y / 6) * 1.4 + lean * (x - 1), 0.0), 1.0) * 2
            upper = min(int(depth), 1)
            seedling.putpixel((x, y), mix(sky[upper], sky[upper + 1], depth - upper))
    return seedling.resize(size, Image.Resampling.BICUBIC)


def paint_stars(canvas: Canvas, horizon: float, dice: Random) -> None:
    """Scatters small stars over the sky, fewer and fainter towards the horizon."""
    width, height = canvas.picture.size
    for _ in range(round(70 * max(width, height) / canvas.unit)):
        depth = dice.random() ** 1.5
        radius = canvas.unit * dice.choice((0.0012, 0.0016, 0.0022, 0.0034))
        shade = round(255 * dice.uniform(0.35, 1.0) * (1 - depth * 0.8))
        paint_ellipse(
            canvas, WHITE, (dice.random() * width, depth * horizon * height), radius, shade
        )


def paint_disc(canvas: Canvas, palette: Palette, horizon: float, dice: Random) -> float:
    """Paints a sun or moon, with its glow, inside translucent rings; returns its middle's x."""
    width, height = canvas.picture.size
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


def paint_clouds(canvas: Canvas, horizon: float, dice: Random) -> None:
    """Paints a few translucent clouds: three rounded bars each, the middle one the longest."""
    width, height = canvas.picture.size
    for _ in range(dice.randint(2, 4)):
        bar = canvas.unit * dice.uniform(0.014, 0.02)
        span = bar * dice.uniform(10, 16)
        at = (dice.uniform(-0.05, 0.9) * width, dice.uniform(0.08, 0.7) * horizon * height)
        top, low = dice.uniform(0.2, 0.4), dice.uniform(0.1, 0.5)
        rows = ((0.0, top, top + 0.4), (1.0, 0.0, 1.0), (2.0, low, low + 0.45))
        bars = [(start * span, row * bar, end * span, (row + 1) * bar) for row, start, end in rows]
        paint_bars(canvas, WHITE, bars, 84, (round(at[0]), round(at[1])))


def paint_shine(canvas: Canvas, colour: Colour, at: tuple[float, float], dice: Random) -> None:
    """Paints the disc's reflection on water: bars that spread out from the horizon at `at`."""
    bar = canvas.unit * 0.0055
    reach = canvas.unit * 0.17
    bars = []
    for row in range(9):
        half = reach * (0.35 + 0.07 * row) * dice.uniform(0.55, 1.0)
        middle = reach * (1 + dice.uniform(-0.12, 0.12))
        y = bar * (1.5 + row * (2.2 + row * 0.12))
        bars.append((middle - half, y, middle + half, y + bar))
    paint_bars(canvas, colour, bars, 150, (round(at[0] - reach), round(at[1])))


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


def paint_land(
    canvas: Canvas,
    palette: Palette,
    kind: str,
    span: tuple[float, float],
    shine_x: float | None,
    dice: Random,
) -> None:
    """Paints layers of land from the horizon (`span[0]`) to the nearest (`span[1]`).

    With `shine_x`, the farthest is flat water that reflects the disc above that x.
    """
    width, height = canvas.picture.size
    layers = 5
    for layer in range(layers):
        depth = layer / (layers - 1)
        if shine_x is not None and layer > 0:
            # Open water needs room for the reflection.
            depth = 0.14 + 0.86 * depth
        crest = (span[0] + (span[1] - span[0]) * depth**1.15) * height
        flat = shine_x is not None and layer == 0
        relief = 0.0 if flat else canvas.unit * (0.17 - 0.09 * depth)
        ridge = make_ridge(kind, depth, dice)
        outline: Points = [
            (x, crest - relief * ridge(x / canvas.unit))
            for x in range(-4, width + canvas.unit // 8 + 8, max(1, canvas.unit // 340))
        ]
        if kind == "trees" and layer >= 2:
            outline = plant_trees(outline, canvas.unit * (0.02 + 0.05 * depth), dice)
        colour = mix(palette.far, palette.near, depth**0.9)
        foot = mix(colour, palette.sky_low, 0.42 * (1 - depth))
        paint_layer(canvas, outline, colour, foot)
        if flat and shine_x is not None:
            paint_shine(canvas, palette.disc, (shine_x, crest), dice)


def paint_layer(canvas: Canvas, outline: Points, colour: Colour, foot: Colour) -> None:
    """Fills everything below `outline`, from `colour` at the crest to `foot` further down."""
    width, height = canvas.picture.size
    top = min(max(math.floor(min(y for _, y in outline)), 0), height - 1)
    solid = min(max(math.ceil(max(y for _, y in outline)), top + 1), height)
    shape = [(x * 2, (y - top) * 2) for x, y in outline]
    shape += [(shape[-1][0], height * 2), (shape[0][0], height * 2)]
    mask = smooth_mask((width, solid - top), lambda pen: pen.polygon(shape, fill=255))
    fade = max(1, min(height - top, round(canvas.unit * 0.34)))
    ramp = Image.new("RGB", (1, height - top), foot)
    for y in range(fade):
        ramp.putpixel((0, y), mix(colour, foot, y / fade))
    fill = ramp.resize((width, height - top), Image.Resampling.NEAREST)
    canvas.stamp(fill.crop((0, 0, *mask.size)), mask, (0, top))
    # Below the lowest point of the crest nothing shows through, which saves most of the mask.
    canvas.picture.paste(fill.crop((0, solid - top, *fill.size)), (0, solid))
    if canvas.coverage is not None:
        canvas.coverage.paste(255, (0, solid, width, height))


def make_ridge(kind: str, depth: float, dice: Random) -> Ridge:
    """Returns a crest; nearer land (`depth` towards 1) is broader than what is far away."""
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
    """Returns the outline with firs of about `tall` pixels standing on it."""
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


def printable_text(prompt: str) -> str:
    """Returns the prompt's opening in glyphs the font has, on one line; "" if little is left.

    Accents are folded away. Other scripts and emoji are left out: boxes would tell nobody more.
    """
    opening = unicodedata.normalize("NFKD", prompt[:PROMPT_CHARS_READ].translate(CAPTION_SPELLINGS))
    letters = sum(unicodedata.category(char)[0] == "L" for char in opening)
    text = "".join(
        char if char in CAPTION_GLYPHS else " "
        for char in opening
        if char in CAPTION_GLYPHS or not unicodedata.category(char).startswith("M")
    )
    kept = sum(char.isalnum() for char in text)
    return " ".join(text.split()) if kept and kept * 2 >= letters else ""


def wrap_text(text: str, font: Font, width: float) -> tuple[str, ...]:
    """Returns the lines, at most CAPTION_LINES_MAX, that fit `width` pixels; a cut ends in "…"."""
    lines: list[str] = []
    rest = text[:CAPTION_CHARS_MAX]
    while rest and len(lines) < CAPTION_LINES_MAX:
        lengths = range(len(rest) + 1)
        fit = bisect_right(lengths, width, key=lambda end: font.getlength(rest[:end])) - 1
        fit = max(fit, 1)
        if fit < len(rest) and rest[fit] != " ":
            # A single word longer than the line has no space to break at, and is cut.
            fit = rest.rfind(" ", 1, fit) if " " in rest[1:fit] else fit
        lines.append(rest[:fit])
        rest = rest[fit:].lstrip()
    if lines and (rest or len(text) > CAPTION_CHARS_MAX):
        last = lines[-1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines[-1] = last.rstrip(" ,.;:-") + "…"
    return tuple(lines)


def lay_out_caption(prompt: str, width: int, height: int) -> Caption:
    """Returns the caption for the lower left corner, the mark below it."""
    unit = min(width, height)
    margin = round(unit * 0.06)
    text = printable_text(prompt)
    size = max(11.0, unit * (0.05 if len(text) <= 48 else 0.038))
    mark_size = max(9.0, unit * 0.022)
    lines: tuple[str, ...] = ()
    if unit >= CAPTION_SIDE_MIN:
        # Lines of more than about 50 characters are hard to follow on a panorama.
        room = min(width - 2 * margin, size * 26)
        lines = wrap_text(text, ImageFont.load_default(size), room)
    top = height - margin - mark_size * 1.9 - len(lines) * size * 1.3
    return Caption(lines, size, mark_size, margin, round(max(top, height * 0.5)))


def write_caption(picture: Image.Image, caption: Caption) -> None:
    """Writes the prompt and the mark onto the nearest land."""
    if min(picture.size) < CAPTION_SIDE_MIN:
        return
    left, bottom = caption.margin, picture.height - caption.margin
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(caption.size)
    for row, line in enumerate(caption.lines):
        y = caption.top + row * caption.size * 1.3
        pen.text((left, y), line, font=font, fill=WHITE)
    spot = picture.crop((left, bottom, left + 1, bottom + 1)).convert("RGB")
    red, green, blue = spot.tobytes()
    quiet = mix((red, green, blue), WHITE, 0.66)
    mark_font = ImageFont.load_default(caption.mark_size)
    pen.text((left, bottom), MARK, font=mark_font, fill=quiet, anchor="ls")
