"""The two relevant facts of TIFF structures in images: orientation, and number of views."""

import struct
from typing import NamedTuple

_TAG_ORIENTATION = 0x0112
_TAG_MP_ENTRIES = 0xB002
_FORMS = {3: "H", 4: "I"}
"""SHORT and LONG, by TIFF's numbers."""
_MAX_ENTRIES = 512
_MP_ENTRY_BYTES = 16
_VIEW_TYPES_MASK, _VIEW_TYPES = 0xFF0000, 0x020000


class _Entry(NamedTuple):
    kind: int
    amount: int
    value: bytes


def _directory(tiff: bytes) -> tuple[str, dict[int, _Entry]]:
    """Return the byte order and the readable part of the first directory of a TIFF structure."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4], "")
    entries: dict[int, _Entry] = {}
    if not order:
        return "<", entries
    try:
        (offset,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, offset)
        for index in range(min(count, _MAX_ENTRIES)):
            place = offset + 2 + 12 * index
            tag, kind, amount, value = struct.unpack_from(order + "HHI4s", tiff, place)
            entries.setdefault(tag, _Entry(kind, amount, value))
    except struct.error:
        pass  # keep the entries before the damage, as viewers do
    return order, entries


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in EXIF data, 1 to 8; 1 if there is none."""
    order, entries = _directory(exif.removeprefix(b"Exif\0\0"))
    entry = entries.get(_TAG_ORIENTATION)
    if entry is None or entry.kind not in _FORMS:
        return 1
    orientation = int(struct.unpack_from(order + _FORMS[entry.kind], entry.value)[0])
    return orientation if orientation in range(1, 9) else 1


def has_several_views(tiff: bytes) -> bool:
    """Tell whether an MPF directory lists several views of one scene: panorama, stereo, angles.

    Thumbnails and gain maps, which phones append to ordinary photographs, have other types
    (CIPA DC-007, 5.2.3.3.1).
    """
    order, entries = _directory(tiff)
    entry = entries.get(_TAG_MP_ENTRIES)
    if entry is None:
        return False
    (start,) = struct.unpack(order + "I", entry.value)
    listed = tiff[start : start + entry.amount]
    whole = listed[: len(listed) - len(listed) % _MP_ENTRY_BYTES]
    return any(
        attribute & _VIEW_TYPES_MASK == _VIEW_TYPES
        for attribute, *_ in struct.iter_unpack(order + "I12x", whole)
    )
