"""Small previews: what a model needs to see of an image without filling its context."""

import binascii
import io

from PIL import Image

MAX_EDGE_PIXELS = 256
QUALITY = 70


def make_preview(encoded: str) -> bytes | None:
    """A WebP of at most 256 pixels an edge (a few kilobytes), or None where it cannot be made.

    The picture was paid for and is stored; a preview that fails must not take it away.
    """
    try:
        with Image.open(io.BytesIO(binascii.a2b_base64(encoded))) as image:
            image.draft("RGB", (MAX_EDGE_PIXELS, MAX_EDGE_PIXELS))
            image.thumbnail((MAX_EDGE_PIXELS, MAX_EDGE_PIXELS), Image.Resampling.BICUBIC)
            out = io.BytesIO()
            image.save(out, "WEBP", quality=QUALITY)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return out.getvalue()
