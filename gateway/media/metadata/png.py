"""Metadata removal from PNG (https://www.w3.org/TR/png-3/)."""

import struct
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from gateway.media.metadata.common import (
    MAX_PARTS,
    MAX_PROFILE_BYTES,
    ImageProblem,
    Stripped,
    UnusableImage,
    check,
    check_size,
    is_profile,
)
from gateway.media.metadata.exif import exif_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_DEPTHS_BITS = {
    _GREY: (1, 2, 4, 8, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _GREY_ALPHA: (8, 16),
    _RGB_ALPHA: (8, 16),
}
_PLAIN_BITS, _DEEP_BITS = 8, 16
_KEPT_MAX_BYTES = {
    b"PLTE": 768,
    b"tRNS": 256,
    b"gAMA": 4,
    b"cHRM": 32,
    b"sRGB": 1,
    b"sBIT": 4,
    b"cICP": 4,
    b"bKGD": 6,
    b"pHYs": 9,
    b"iCCP": MAX_PROFILE_BYTES,
}
"""Chunks that may precede IDAT, with their sizes. Longer ones could hide data."""
_SAMPLES = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGB_ALPHA: 4}
_ADAM7 = (
    (0, 8, 0, 8),
    (4, 8, 0, 8),
    (0, 4, 4, 8),
    (2, 4, 0, 4),
    (0, 2, 2, 4),
    (1, 2, 0, 2),
    (0, 1, 1, 2),
)
_PASSES = (((0, 1, 0, 1),), _ADAM7)
"""By interlacing method: first column, column step, first row, row step of each pass (8.1)."""
_INPUT_BYTES = 64 * 1024
_OUTPUT_BYTES = 1024 * 1024
_IHDR_BYTES = 13
_CHUNK_EXTRA_BYTES = 12  # length, type and CRC


class _Chunk(NamedTuple):
    kind: bytes
    whole: memoryview

    def payload(self) -> bytes:
        return bytes(self.whole[8:-4])

    def is_intact(self) -> bool:
        return zlib.crc32(self.whole[4:-4]) == int.from_bytes(self.whole[-4:], "big")


class _Header(NamedTuple):
    width: int
    height: int
    depth_bits: int
    colour: int
    compression: int
    filtering: int
    interlacing: int

    def unpacked_bytes(self) -> int:
        """Return the size of the unpacked pixel data: each pass has rows with a filter byte."""
        bits = self.depth_bits * _SAMPLES[self.colour]
        total = 0
        for left, step_x, top, step_y in _PASSES[self.interlacing]:
            columns = -(-(self.width - left) // step_x)
            rows = -(-(self.height - top) // step_y)
            if columns > 0:
                total += max(rows, 0) * (1 + -(-columns * bits // 8))
        return total


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """Yield the complete chunks up to IEND."""
    view = memoryview(data)
    place = len(SIGNATURE)
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + length + _CHUNK_EXTRA_BYTES
        check(is_sound=end <= len(data))
        yield _Chunk(kind, view[place:end])
        if kind == b"IEND":
            return
        place = end
    raise UnusableImage(ImageProblem.TOO_EXPENSIVE)


def _checked_header(chunk: _Chunk, max_pixels: int) -> _Header:
    check(is_sound=chunk.kind == b"IHDR" and len(chunk.payload()) == _IHDR_BYTES)
    header = _Header(*struct.unpack(">IIBBBBB", chunk.payload()))
    check_size(header.width, header.height, max_pixels)
    check(is_sound=header.depth_bits in _DEPTHS_BITS.get(header.colour, ()))
    check(is_sound=header.compression == header.filtering == 0 and header.interlacing in {0, 1})
    return header


def _is_packed_profile(payload: bytes) -> bool:
    """Tell whether an iCCP chunk unpacks, within the size limit, to a colour profile."""
    _, _, packed = payload.partition(b"\0")
    unpacking = zlib.decompressobj()
    try:
        profile = unpacking.decompress(packed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return False
    return unpacking.eof and not unpacking.unused_data and is_profile(profile)


def _is_kept(chunk: _Chunk, seen: set[bytes], header: _Header) -> bool:
    """Tell whether this chunk between IHDR and IDAT affects how the image is drawn."""
    payload = chunk.payload()
    is_misplaced = chunk.kind in seen or b"IDAT" in seen
    if is_misplaced or len(payload) > _KEPT_MAX_BYTES.get(chunk.kind, -1):
        return False
    if chunk.kind == b"tRNS":
        return header.colour not in {_GREY_ALPHA, _RGB_ALPHA}
    return chunk.kind != b"iCCP" or _is_packed_profile(payload)


def _transparent_colour(payload: bytes, header: _Header) -> tuple[int, ...] | None:
    """Return the colour of a tRNS chunk in 8-bit samples; None for a palette, which has many."""
    samples = {_GREY: 1, _RGB: 3}.get(header.colour)
    if samples is None:
        return None
    values: tuple[int, ...] = struct.unpack_from(f">{samples}H", payload)
    if header.depth_bits == _DEEP_BITS:
        return tuple(value >> 8 for value in values)
    largest = (1 << header.depth_bits) - 1
    return tuple((value & largest) * 255 // largest for value in values)


def _are_rows_exact(chunks: list[_Chunk], expected_bytes: int) -> bool:
    """Tell whether the data contain exactly the rows of the image; raise if rows are missing.

    Pillow does not notice missing rows and shows them black.
    """
    unpacking = zlib.decompressobj()
    unpacked_bytes = 0
    is_surplus = False
    packed = (chunk.payload() for chunk in chunks if chunk.kind == b"IDAT")
    pieces = (
        data[place : place + _INPUT_BYTES]
        for data in packed
        for place in range(0, len(data), _INPUT_BYTES)
    )
    try:
        for piece in chain(pieces, [b""]):
            pending = piece
            while not is_surplus and not unpacking.eof:
                unpacked_bytes += len(unpacking.decompress(pending, _OUTPUT_BYTES))
                is_surplus = unpacked_bytes > expected_bytes
                pending = unpacking.unconsumed_tail
                if not pending:
                    break
            is_surplus = is_surplus or len(pending) + len(unpacking.unused_data) > 0
    except zlib.error:
        raise UnusableImage(ImageProblem.UNREADABLE) from None
    check(is_sound=unpacked_bytes >= expected_bytes)
    return unpacking.eof and not is_surplus


def strip(data: bytes, max_pixels: int) -> Stripped:
    """Remove the metadata; see `strip_metadata`."""
    chunks = _chunks(data)
    first = next(chunks)
    header = _checked_header(first, max_pixels)
    kept = [first]
    seen: set[bytes] = {first.kind}
    orientation, transparent = 1, None
    for chunk in chunks:
        kind = chunk.kind
        if kind in {b"IDAT", b"IEND"}:
            kept.append(chunk)
        elif _is_kept(chunk, seen, header):
            kept.append(chunk)
            if kind == b"tRNS":
                transparent = _transparent_colour(chunk.payload(), header)
        elif kind == b"acTL" and struct.unpack_from(">I", chunk.payload())[0] > 1:
            raise UnusableImage(ImageProblem.ANIMATED)
        elif kind == b"eXIf" and kind not in seen:
            orientation = exif_orientation(chunk.payload())
        else:  # dropping a critical chunk, which starts in upper case, would change the image
            check(is_sound=kind[:1].islower() or kind == b"PLTE")
        seen.add(kind)
    check(is_sound=b"IDAT" in seen and (header.colour != _PALETTE or b"PLTE" in seen))
    check(is_sound=all(chunk.is_intact() for chunk in kept))
    is_exact = _are_rows_exact(kept, header.unpacked_bytes())
    is_palette = header.colour == _PALETTE
    return Stripped(
        content=b"".join([SIGNATURE, *(chunk.whole for chunk in kept)]),
        media_type="image/png",
        width=header.width,
        height=header.height,
        orientation=orientation,
        decoding_bytes_per_pixel=1 if is_palette or header.colour == _GREY else 4,
        is_plain=header.depth_bits == _PLAIN_BITS and not is_palette and is_exact,
        transparent=transparent,
    )
