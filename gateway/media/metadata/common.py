"""Shared by the three containers: reasons to refuse an image, limits, and the result."""

from dataclasses import dataclass
from enum import StrEnum

ENCODINGS = ("image/png", "image/jpeg", "image/webp")
"""The formats that the decoder writes; a job names one by its place here."""
MAX_EDGE_PIXELS = 16_384
MAX_PROFILE_BYTES = 1024 * 1024
"""Larger colour profiles are dropped; those of displays have a few kilobytes."""
MAX_PARTS = 65_536
"""Most chunks or segments of a file."""


class ImageProblem(StrEnum):
    """Reason to refuse an image."""

    UNSUPPORTED = "unsupported"
    UNREADABLE = "unreadable"
    ANIMATED = "animated"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_EXPENSIVE = "too_expensive"


_MESSAGES = {
    ImageProblem.UNSUPPORTED: "The file is not a PNG, JPEG or WebP image.",
    ImageProblem.UNREADABLE: "The image is damaged, truncated, or of an unsupported kind.",
    ImageProblem.ANIMATED: "The image has several frames; only still images are accepted.",
    ImageProblem.TOO_MANY_PIXELS: "The image has too many pixels.",
    ImageProblem.TOO_EXPENSIVE: "The image takes too much time or memory to decode.",
}


class UnusableImage(Exception):
    """An image that cannot be used; `message` gives the reason and quotes none of its content."""

    def __init__(self, problem: ImageProblem) -> None:
        self.problem = problem
        self.message = _MESSAGES[problem]
        super().__init__(self.message)


@dataclass(frozen=True, slots=True)
class Stripped:
    """A file without metadata, and the facts of its headers; sizes are as stored."""

    content: bytes
    media_type: str
    width: int
    height: int
    orientation: int
    """EXIF's, 1 to 8: the rotation or reflection that a viewer applies."""
    decoding_bytes_per_pixel: int
    """Lower bound of the memory that decoding takes, to refuse large images beforehand."""
    check_bytes_per_pixel: int | None = None
    """The same for a check at an eighth of the size, where the format allows one (JPEG)."""
    is_plain: bool = True
    """True for eight bits per sample, no palette, and no data behind the last row."""
    transparent: tuple[int, ...] | None = None
    """The one colour that PNG's tRNS makes transparent, in 8-bit samples of grey or RGB."""


def check(*, is_sound: bool) -> None:
    """Refuse a file whose structure is not sound."""
    if not is_sound:
        raise UnusableImage(ImageProblem.UNREADABLE)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image by the size that its header claims."""
    check(is_sound=width > 0 and height > 0)
    if max(width, height) > MAX_EDGE_PIXELS or width * height > max_pixels:
        raise UnusableImage(ImageProblem.TOO_MANY_PIXELS)


def is_profile(profile: bytes) -> bool:
    """Tell whether this is a colour profile to keep: signature at byte 36 (ICC.1:2022, 7.2)."""
    return len(profile) <= MAX_PROFILE_BYTES and profile[36:40] == b"acsp"
