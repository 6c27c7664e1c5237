"""The two facts that matter in TIFF structures inside pictures: which way is up, and how many."""

import struct
from typing import NamedTuple

_TAG_ORIENTATION = 0x0112
_TAG_PICTURES = 0xB002
_FORMS = {3: "H", 4: "I"}
"""SHORT and LONG, by TIFF's numbers."""
_MAX_ENTRIES = 512
_PICTURE_BYTES = 16
_VIEW_TYPES_MASK, _VIEW_TYPES = 0xFF0000, 0x020000


class _Entry(NamedTuple):
    kind: int
    amount: int
    value: bytes


def _directory(tiff: bytes) -> tuple[str, dict[int, _Entry]]:
    """The byte order and the first directory of a TIFF structure, as far as it makes sense."""
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
        pass  # viewers use the entries before the damage, and so does this
    return order, entries


def exif_orientation(exif: bytes) -> int:
    """The orientation that EXIF data name, 1 to 8; 1 where they name none."""
    order, entries = _directory(exif.removeprefix(b"Exif\0\0"))
    entry = entries.get(_TAG_ORIENTATION)
    if entry is None or entry.kind not in _FORMS:
        return 1
    orientation = int(struct.unpack_from(order + _FORMS[entry.kind], entry.value)[0])
    return orientation if orientation in range(1, 9) else 1


def has_several_views(tiff: bytes) -> bool:
    """Whether a multi-picture directory lists views of one scene: a panorama, stereo, angles.

    Thumbnails and gain maps, which telephones put behind ordinary photographs, are of other types
    (CIPA DC-007, 5.2.3.3.1).
    """
    order, entries = _directory(tiff)
    entry = entries.get(_TAG_PICTURES)
    if entry is None:
        return False
    (start,) = struct.unpack(order + "I", entry.value)
    listed = tiff[start : start + entry.amount]
    whole = listed[: len(listed) - len(listed) % _PICTURE_BYTES]
    return any(
        attribute & _VIEW_TYPES_MASK == _VIEW_TYPES
        for attribute, *_ in struct.iter_unpack(order + "I12x", whole)
    )
