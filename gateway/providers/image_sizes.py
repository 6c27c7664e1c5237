"""Format and size of an image by its first bytes, without decoding it.

PNG: https://www.w3.org/TR/png/ §11.2.1 · JPEG: ITU T.81 §B.2.2 · WebP: RFC 9649 §2.
"""

import struct
from dataclasses import dataclass

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG's markers of a frame's header; the others of that range mean something else."""
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """A file format (`png`, `jpeg`, `webp`), and the size as `WIDTHxHEIGHT`."""

    format: str
    size: str


def read_image_header(content: bytes) -> ImageHeader | None:
    """Read the first bytes of a file; None if they are no header of a known format."""
    try:
        if content.startswith(PNG_SIGNATURE):
            return _header("png", *struct.unpack_from(">II", content, 16))
        if content.startswith(b"\xff\xd8"):
            return _read_jpeg(content)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return _read_webp(content)
    except (struct.error, IndexError):
        return None
    return None


def _header(name: str, width: int, height: int) -> ImageHeader:
    return ImageHeader(name, f"{width}x{height}")


def _read_jpeg(content: bytes) -> ImageHeader | None:
    at = 2
    while content[at] == 0xFF:  # noqa: PLR2004 - every marker begins with it
        marker = content[at + 1]
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", content, at + 5)
            return _header("jpeg", width, height)
        if marker in _STANDALONE:
            at += 2
        else:
            at += 2 + int(struct.unpack_from(">H", content, at + 2)[0])
    return None


def _read_webp(content: bytes) -> ImageHeader | None:
    kind = content[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return _header("webp", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return _header("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8X":
        width = int.from_bytes(content[24:27], "little") + 1
        return _header("webp", width, int.from_bytes(content[27:30], "little") + 1)
    return None
