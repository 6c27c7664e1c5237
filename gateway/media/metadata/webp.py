"""Metadata removal from WebP (RFC 9649)."""

import struct
from collections.abc import Iterator

from gateway.media.metadata.common import (
    MAX_PARTS,
    ImageProblem,
    Stripped,
    UnusableImage,
    check,
    check_size,
    is_profile,
)
from gateway.media.metadata.exif import exif_orientation

_HEAD_BYTES = 12
_VP8X_BYTES = 10
_ANIMATED, _ALPHA, _PROFILE = 0x02, 0x10, 0x20
_SIZE_MASK = 0x3FFF
_LOSSLESS_SIGNATURE = 0x2F
_LOSSY_SIGNATURE = b"\x9d\x01\x2a"


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kinds and payloads up to the end that the RIFF header gives."""
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    check(is_sound=_HEAD_BYTES < end <= len(data))
    place = _HEAD_BYTES
    for _ in range(MAX_PARTS):
        if place >= end:
            return
        kind, length = struct.unpack_from("<4sI", data, place)
        place += 8
        check(is_sound=place + length <= end)
        yield kind, data[place : place + length]
        place += length + length % 2
    raise UnusableImage(ImageProblem.TOO_EXPENSIVE)


def _checked_canvas(payload: bytes, max_pixels: int) -> tuple[int, int]:
    """Return width and height from the header of an extended file; refuse animations."""
    check(is_sound=len(payload) == _VP8X_BYTES)
    if payload[0] & _ANIMATED:
        raise UnusableImage(ImageProblem.ANIMATED)
    width = int.from_bytes(payload[4:7], "little") + 1
    height = int.from_bytes(payload[7:10], "little") + 1
    check_size(width, height, max_pixels)
    return width, height


def _bitstream_size(kind: bytes, payload: bytes) -> tuple[int, int]:
    """Return width and height from the bitstream's header (RFC 6386, 9.1 and RFC 9649, 3.4)."""
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", payload)
        check(is_sound=signature == _LOSSLESS_SIGNATURE)
        return (bits & _SIZE_MASK) + 1, (bits >> 14 & _SIZE_MASK) + 1
    check(is_sound=payload[3:6] == _LOSSY_SIGNATURE)
    width, height = struct.unpack_from("<HH", payload, 6)
    return width & _SIZE_MASK, height & _SIZE_MASK


def _riff(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [
        struct.pack("<4sI", kind, len(payload)) + payload + b"\0" * (len(payload) % 2)
        for kind, payload in chunks
    ]
    return struct.pack("<4sI4s", b"RIFF", 4 + sum(map(len, parts)), b"WEBP") + b"".join(parts)


def _cleaned(found: dict[bytes, bytes], bitstream: bytes) -> list[tuple[bytes, bytes]]:
    """Return the chunks that affect the pixels, in the order that the format requires."""
    kept = []
    if b"VP8X" in found:
        has_profile = is_profile(found.get(b"ICCP", b""))
        flags = found[b"VP8X"][0] & _ALPHA | (_PROFILE if has_profile else 0)
        kept.append((b"VP8X", bytes([flags, 0, 0, 0]) + found[b"VP8X"][4:]))
        if has_profile:
            kept.append((b"ICCP", found[b"ICCP"]))
        if b"ALPH" in found and bitstream == b"VP8 ":
            kept.append((b"ALPH", found[b"ALPH"]))
    return [*kept, (bitstream, found[bitstream])]


def strip(data: bytes, max_pixels: int) -> Stripped:
    """Remove the metadata; see `strip_metadata`."""
    found: dict[bytes, bytes] = {}
    canvas = None
    for kind, payload in _chunks(data):
        if kind == b"VP8X":
            check(is_sound=not found)
            canvas = _checked_canvas(payload, max_pixels)
        elif kind in {b"ANIM", b"ANMF"}:
            raise UnusableImage(ImageProblem.ANIMATED)
        elif kind in {b"VP8 ", b"VP8L"}:
            check(is_sound=found.keys().isdisjoint({b"VP8 ", b"VP8L"}))
        found.setdefault(kind, payload)
    bitstream = b"VP8L" if b"VP8L" in found else b"VP8 "
    check(is_sound=bitstream in found)
    size = _bitstream_size(bitstream, found[bitstream])
    check_size(*size, max_pixels)
    check(is_sound=canvas in {None, size})
    return Stripped(
        content=_riff(_cleaned(found, bitstream)),
        media_type="image/webp",
        width=size[0],
        height=size[1],
        orientation=exif_orientation(found.get(b"EXIF", b"")),
        # Two canvases of libwebp, a copy and the image, four bytes each, and its working memory.
        decoding_bytes_per_pixel=22 if bitstream == b"VP8L" else 18,
    )
