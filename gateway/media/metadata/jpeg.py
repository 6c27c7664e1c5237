"""Metadata removal from JPEG.

ITU-T T.81, https://www.w3.org/Graphics/JPEG/itu-t81.pdf, annex B.
"""

import re
import struct
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from gateway.media.metadata.common import (
    MAX_PARTS,
    ImageProblem,
    Stripped,
    UnusableImage,
    check,
    check_size,
    is_profile,
)
from gateway.media.metadata.exif import exif_orientation, has_several_views

SIGNATURE = b"\xff\xd8\xff"
MAX_SCANS = 64
"""Each scan of a progressive file is a pass over the whole image. Encoders write about ten."""

_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
"""The end of scan data: not a stuffed zero, a restart, or a fill byte behind 0xFF."""
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_SOF_PROGRESSIVE = 0xC2
_SOF_DECODED = {0xC0, 0xC1, _SOF_PROGRESSIVE}
"""Baseline, extended and progressive frames with Huffman coding, which every viewer decodes."""
_TABLES = {0xC4, 0xDB, 0xDD}
_SOF = {*range(0xC0, 0xD0), 0xDE} - _TABLES
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_JFIF_BYTES_BEFORE_THUMBNAIL = 12
_ADOBE_BYTES = 12
_PROFILE_HEAD = b"ICC_PROFILE\0"
_PROFILE_HEAD_BYTES = len(_PROFILE_HEAD) + 2  # which part this is, and of how many
_COMPONENTS = {1, 3, 4}
_SAMPLE_BITS = 8


class _Segment(NamedTuple):
    marker: int
    payload: bytes
    scan: memoryview
    """The entropy-coded data behind the header of a scan; empty elsewhere."""

    def is_app(self, marker: int, head: bytes) -> bool:
        return self.marker == marker and self.payload.startswith(head)

    def written(self) -> tuple[bytes | memoryview, ...]:
        head = struct.pack(">BBH", 0xFF, self.marker, len(self.payload) + 2)
        return head, self.payload, self.scan


class _Frame(NamedTuple):
    precision_bits: int
    height: int
    width: int
    components: int


def _segments(data: bytes) -> Iterator[_Segment]:
    """Yield the segments between SOI and EOI; stray bytes between them are dropped."""
    view = memoryview(data)
    found = _MARKER.search(data, len(SIGNATURE) - 1)
    for _ in range(MAX_PARTS):
        if found is None:
            raise UnusableImage(ImageProblem.UNREADABLE)
        marker = found[1][0]
        if marker == _EOI:
            return
        start = found.end()
        end = start + struct.unpack_from(">H", data, start)[0]
        check(is_sound=marker != _SOI and start + 2 <= end <= len(data))
        found = _MARKER.search(data, end)
        scan_end = found.start() if found and marker == _SOS else end
        yield _Segment(marker, data[start + 2 : end], view[end:scan_end])
    raise UnusableImage(ImageProblem.TOO_EXPENSIVE)


def _checked_frame(segment: _Segment, max_pixels: int) -> _Frame:
    frame = _Frame(*struct.unpack_from(">BHHB", segment.payload))
    check_size(frame.width, frame.height, max_pixels)
    is_usual = segment.marker in _SOF_DECODED and frame.precision_bits == _SAMPLE_BITS
    check(is_sound=is_usual and frame.components in _COMPONENTS)
    return frame


def _cleaned(segments: list[_Segment]) -> list[_Segment]:
    """Return the segments that affect the pixels: header, valid colour profile, and the rest."""
    header, profile, body = list[_Segment](), list[_Segment](), list[_Segment]()
    for segment in segments:
        if segment.is_app(_APP0, b"JFIF\0") and not header:
            # The two bytes behind it are the size of a thumbnail, which is dropped.
            head = segment.payload[:_JFIF_BYTES_BEFORE_THUMBNAIL]
            header.append(segment._replace(payload=head + b"\0\0"))
        elif segment.is_app(_APP2, _PROFILE_HEAD):
            profile.append(segment)
        elif segment.is_app(_APP14, b"Adobe"):
            body.append(segment._replace(payload=segment.payload[:_ADOBE_BYTES]))
        elif segment.marker in _SOF | _TABLES | {_SOS}:
            body.append(segment)
    whole_profile = b"".join(segment.payload[_PROFILE_HEAD_BYTES:] for segment in profile)
    return header + (profile if is_profile(whole_profile) else []) + body


def strip(data: bytes, max_pixels: int) -> Stripped:
    """Remove the metadata; see `strip_metadata`."""
    segments: list[_Segment] = []
    frames: list[_Frame] = []
    scans = 0
    for segment in _segments(data):
        segments.append(segment)
        if segment.marker in _SOF:
            frames.append(_checked_frame(segment, max_pixels))
        elif segment.marker == _SOS:
            check(is_sound=bool(frames))
            scans += 1
        elif segment.is_app(_APP2, b"MPF\0") and has_several_views(segment.payload[4:]):
            raise UnusableImage(ImageProblem.ANIMATED)
    check(is_sound=scans > 0 and len(frames) == 1)
    if scans > MAX_SCANS:
        raise UnusableImage(ImageProblem.TOO_EXPENSIVE)
    frame = frames[0]
    exif = next((s.payload for s in segments if s.is_app(_APP1, b"Exif\0\0")), b"")
    is_buffered = scans > 1 or any(s.marker == _SOF_PROGRESSIVE for s in segments)
    # With several scans the decoder keeps all coefficients, two bytes each, until the last.
    buffered_bytes = 2 * frame.components if is_buffered else 0
    parts = chain.from_iterable(segment.written() for segment in _cleaned(segments))
    return Stripped(
        content=b"".join([b"\xff\xd8", *parts, b"\xff\xd9"]),
        media_type="image/jpeg",
        width=frame.width,
        height=frame.height,
        orientation=exif_orientation(exif),
        decoding_bytes_per_pixel=(1 if frame.components == 1 else 4) + buffered_bytes,
        check_bytes_per_pixel=buffered_bytes,
    )
