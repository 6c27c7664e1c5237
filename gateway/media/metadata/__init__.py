"""Metadata removal from image files: keep the pixels, drop everything else.

Pure functions over bytes, imported by the decoder's process. Nothing is decoded here: container
structure is checked, the parts that affect the pixels are copied, and the rest is dropped.
"""

import struct

from gateway.media.metadata import jpeg, png, webp
from gateway.media.metadata.common import ImageProblem, Stripped, UnusableImage

STRIPPERS = {"png": png.strip, "jpeg": jpeg.strip, "webp": webp.strip}


def strip_metadata(data: bytes, *, max_pixels: int) -> Stripped:
    """Remove metadata and trailing data from an image file; the pixel data stay unchanged.

    Raises:
        UnusableImage: the structure is not acceptable. The pixels may still fail to decode.
    """
    found = sniff_format(data)
    if found is None:
        raise UnusableImage(ImageProblem.UNSUPPORTED)
    try:
        return STRIPPERS[found](data, max_pixels)
    except struct.error:  # a part ends before its fields do
        raise UnusableImage(ImageProblem.UNREADABLE) from None


def sniff_format(data: bytes) -> str | None:
    """Detect the format (`png`, `jpeg`, `webp`) from the first bytes; None for any other."""
    if data.startswith(png.SIGNATURE):
        return "png"
    if data.startswith(jpeg.SIGNATURE):
        return "jpeg"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None
