"""Picture files without their metadata: the same pixels, and nothing else that they carried.

Pure functions over bytes for the decoder's process. Nothing is decoded here: what the containers
say is checked, the parts that draw the picture are kept as they are, and the rest is left out.
"""

import struct

from gateway.media.metadata import jpeg, png, webp
from gateway.media.metadata.common import ImageProblem, Stripped, UnusableImage

STRIPPERS = {"png": png.strip, "jpeg": jpeg.strip, "webp": webp.strip}


def strip_metadata(data: bytes, *, max_pixels: int) -> Stripped:
    """The same picture without metadata and without what follows its end, its pixels untouched.

    Raises:
        UnusableImage: by its structure alone; whether the pixels decode is not known yet.
    """
    found = sniff_format(data)
    if found is None:
        raise UnusableImage(ImageProblem.UNSUPPORTED)
    try:
        return STRIPPERS[found](data, max_pixels)
    except struct.error:  # a part ends before its fields do
        raise UnusableImage(ImageProblem.UNREADABLE) from None


def sniff_format(data: bytes) -> str | None:
    """The format (`png`, `jpeg`, `webp`) that the first bytes say, whatever anybody declared."""
    if data.startswith(png.SIGNATURE):
        return "png"
    if data.startswith(jpeg.SIGNATURE):
        return "jpeg"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None
