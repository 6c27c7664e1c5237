"""Drawing of the sandbox's images: layered landscapes with a caption.

Equal arguments give equal bytes in every process, so tests and retries can compare them.
"""

import hashlib
import io
import math
import re
from random import Random
from typing import Literal

from PIL import Image

from gateway.media.drawings.canvas import parse_colour
from gateway.media.drawings.caption import PROMPT_CHARS_READ, lay_out_caption, write_caption
from gateway.media.drawings.inputs import EditInputs, work_in
from gateway.media.drawings.png import encode_png
from gateway.media.drawings.scenery import PALETTES, RIDGES, Palette, choose, paint_scene

OutputFormat = Literal["png", "jpeg", "webp"]

SCENE_PIXELS_MAX = 600_000
"""Larger images are painted at a fraction of their size and enlarged, to bound time and memory."""
COARSEST_SIDE = 12
"""Pixels on the short side of the first partial image; each further one has twice as many."""


def paint(
    prompt: str,
    *,
    index: int,
    size: tuple[int, int],
    transparent: bool,
    inputs: EditInputs | None = None,
    seed: bytes | None = None,
) -> Image.Image:
    """Return an image of exactly `size`, RGB, or RGBA if `transparent`.

    `index` makes the images of one request different. `inputs`, of the same size, are composed in.
    `seed` is that of the whole prompt (`seed_of`), where `prompt` is only its beginning.
    """
    width, height = size
    dice = Random(int.from_bytes(seed or seed_of(prompt, index)))
    words = re.findall(r"[a-z]+", prompt[:PROMPT_CHARS_READ].lower())
    palette = Palette(*map(parse_colour, choose(PALETTES, words, dice).split()))
    caption = lay_out_caption(prompt, width, height)

    shrink = max(1, math.ceil(math.sqrt(width * height / SCENE_PIXELS_MAX)))
    image = paint_scene(
        (math.ceil(width / shrink), math.ceil(height / shrink)),
        palette=palette,
        ridge_kind=choose(RIDGES, words, dice),
        floor=(caption.top - caption.margin * 0.6) / height,
        transparent=transparent,
        dice=dice,
    )
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    if inputs is not None:
        plate = round(caption.top - caption.margin * 0.6)
        image = work_in(image, inputs, index=index, plate_top=plate, plate_colour=palette.near)
    write_caption(image, caption)
    return image


def seed_of(prompt: str, index: int) -> bytes:
    """Return the seed of an image: of the whole prompt, and of its number in the request."""
    return hashlib.sha256(f"{index}\n{prompt}".encode("utf-8", "surrogatepass")).digest()


def coarsen(image: Image.Image, stage: int) -> Image.Image:
    """Return a partial image on the way to `image`; `stage` counts from 0, the coarsest."""
    width, height = image.size
    scale = min(1.0, COARSEST_SIDE * 2**stage / min(width, height))
    few = image.resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX
    )
    return few.resize(image.size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, output_format: OutputFormat, compression: int | None) -> bytes:
    """Encode the image with the fastest settings, because sandbox images need no small files.

    `compression` is the quality, 0 to 100, of a JPEG or WebP (None: 100); PNG is lossless and
    ignores it.
    """
    quality = 100 if compression is None else compression
    file = io.BytesIO()
    if output_format == "png":
        return encode_png(image)
    if output_format == "jpeg":
        # Above 95 libjpeg grows the file without a visible gain (Pillow handbook, "JPEG saving").
        image.save(file, "JPEG", quality=min(max(quality, 1), 95))
    else:
        image.save(file, "WEBP", quality=min(max(quality, 1), 100), method=0)
    return file.getvalue()
