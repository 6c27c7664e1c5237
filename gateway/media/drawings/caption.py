"""The caption on the sandbox's images: the prompt, as far as the font can print it."""

import unicodedata
from bisect import bisect_right
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from gateway.media.drawings.canvas import WHITE, mix

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

MARK = "Image Gateway sandbox"
PROMPT_CHARS_READ = 2_000
CAPTION_CHARS_MAX = 300
CAPTION_LINES_MAX = 3
CAPTION_SIDE_MIN = 160
"""Shortest side, in pixels, on which text is legible."""
CAPTION_GLYPHS = frozenset(map(chr, range(33, 127))) | frozenset("©«°±·»‘’“”…‹›™")
"""Glyphs of Pillow's bundled font (part of Aileron); any other would be an empty box."""
CAPTION_SPELLINGS = str.maketrans(
    {"–": "-", "—": "-", "−": "-", "ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "Ø": "O", "ł": "l"}
)


@dataclass(frozen=True)
class Caption:
    """The prompt's printable lines. `top` is the y of the first line, in image pixels."""

    lines: tuple[str, ...]
    size: float
    mark_size: float
    margin: int
    top: int


def printable_text(prompt: str) -> str:
    """Return the prompt's beginning in glyphs of the font, on one line; "" if little is left.

    Accents are removed. Other scripts and emoji are left out instead of printed as boxes.
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
    """Return at most CAPTION_LINES_MAX lines that fit `width` pixels; a cut text ends in "…"."""
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
    """Return the caption for the lower left corner, with the mark below it."""
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


def write_caption(image: Image.Image, caption: Caption) -> None:
    """Print the prompt and the mark onto the nearest land."""
    if min(image.size) < CAPTION_SIDE_MIN:
        return
    left, bottom = caption.margin, image.height - caption.margin
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(caption.size)
    for row, line in enumerate(caption.lines):
        y = caption.top + row * caption.size * 1.3
        pen.text((left, y), line, font=font, fill=WHITE)
    spot = image.crop((left, bottom, left + 1, bottom + 1)).convert("RGB")
    red, green, blue = spot.tobytes()
    quiet = mix((red, green, blue), WHITE, 0.66)
    mark_font = ImageFont.load_default(caption.mark_size)
    pen.text((left, bottom), MARK, font=mark_font, fill=quiet, anchor="ls")
