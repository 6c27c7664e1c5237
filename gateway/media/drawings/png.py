"""A PNG writer for drawings, faster than a general one, which tries every filter on each row."""

import struct
import zlib

from PIL import Image, ImageChops

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {"RGB": 2, "RGBA": 6}
UP = b"\2"
"""Filter of a row: the difference to the row above, which is flat in landscapes."""


def encode_png(image: Image.Image) -> bytes:
    """Encode an RGB or RGBA image (https://www.w3.org/TR/png-3/)."""
    above = Image.new(image.mode, image.size)
    above.paste(image, (0, 1))
    differences = ImageChops.subtract_modulo(image, above).tobytes()
    stride = len(differences) // image.height
    rows = (differences[at : at + stride] for at in range(0, len(differences), stride))
    header = struct.pack(">IIBBBBB", *image.size, 8, COLOUR_TYPES[image.mode], 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(UP + UP.join(rows), level=1)),
        (b"IEND", b""),
    )
    return SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
