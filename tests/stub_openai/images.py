"""Real, small, valid images of any size, made once and kept as ready JSON fragments."""

import base64
import io
import random
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

_COLOURS = ((178, 34, 34), (34, 139, 34), (65, 105, 225), (218, 165, 32), (138, 43, 226))
_PNG_END = 12  # the IEND chunk: empty length, name, checksum
_JPEG_COMMENT_BYTES = 65_533


@dataclass(frozen=True, slots=True)
class Look:
    """The properties of an image; its base64 has at least `min_b64` characters."""

    image_format: str
    width: int
    height: int
    transparent: bool
    min_b64: int
    sample: str = ""
    """The image itself in base64, if it is not to be drawn."""


@lru_cache(maxsize=128)
def base64_image(look: Look, number: int = 0) -> str:
    """An image in base64; those of different `number` differ."""
    if look.sample:
        return look.sample
    wanted = -(-look.min_b64 * 3 // 4)
    return base64.b64encode(encode(look, number % len(_COLOURS), wanted)).decode()


def encode(look: Look, colour: int, noise_bytes: int) -> bytes:
    """One image file of at least `noise_bytes` bytes."""
    mode = "RGBA" if look.transparent else "RGB"
    fill = _COLOURS[colour] + ((0,) if look.transparent else ())
    image = Image.new(mode, (look.width, look.height), fill)
    noise = random.Random(colour)
    if noise_bytes and look.image_format == "png":
        # Noise does not compress, so the decoder of the program under test works as hard as on
        # a real photograph of that many bytes.
        row_bytes = look.width * len(mode)
        rows = min(look.height, -(-noise_bytes // row_bytes))
        block = Image.frombytes(mode, (look.width, rows), noise.randbytes(rows * row_bytes))
        image.paste(block, (0, 0))
    out = io.BytesIO()
    image.save(out, format=look.image_format.upper())
    plain = out.getvalue()
    missing = noise_bytes - len(plain)
    if missing <= 0:
        return plain
    if look.image_format == "webp":
        out = io.BytesIO()
        image.save(out, format="WEBP", xmp=noise.randbytes(missing))
        return out.getvalue()
    return _PADDERS[look.image_format](plain, noise.randbytes(missing))


def _pad_png(plain: bytes, filler: bytes) -> bytes:
    # A private ancillary chunk: every reader skips what it does not know.
    chunk = b"stUb" + filler
    framed = struct.pack(">I", len(filler)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return plain[:-_PNG_END] + framed + plain[-_PNG_END:]


def _pad_jpeg(plain: bytes, filler: bytes) -> bytes:
    pieces = [plain[:2]]
    for start in range(0, len(filler), _JPEG_COMMENT_BYTES):
        piece = filler[start : start + _JPEG_COMMENT_BYTES]
        pieces.append(b"\xff\xfe" + struct.pack(">H", len(piece) + 2) + piece)
    pieces.append(plain[2:])
    return b"".join(pieces)


_PADDERS = {"png": _pad_png, "jpeg": _pad_jpeg}


def measure(data: bytes) -> tuple[str, int, int, bool] | None:
    """(format, width, height, has alpha) of an uploaded file, or None when it is no image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            alpha = "A" in image.getbands() or "transparency" in image.info
            return (image.format or "").lower(), image.width, image.height, alpha
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
