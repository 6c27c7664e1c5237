"""What the three containers share: why a picture is refused, limits, and the result."""

from dataclasses import dataclass
from enum import StrEnum

MAX_EDGE_PIXELS = 16_384
MAX_PROFILE_BYTES = 1024 * 1024
"""A larger colour profile is left out; those of displays have a few kilobytes."""
MAX_PARTS = 65_536
"""Chunks or segments of a file."""


class ImageProblem(StrEnum):
    """Why a picture is refused."""

    UNSUPPORTED = "unsupported"
    UNREADABLE = "unreadable"
    ANIMATED = "animated"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_EXPENSIVE = "too_expensive"


_MESSAGES = {
    ImageProblem.UNSUPPORTED: "The file is not a PNG, JPEG or WebP picture.",
    ImageProblem.UNREADABLE: "The picture is damaged, cut off, or of a kind that is not read.",
    ImageProblem.ANIMATED: "The picture has several frames; only still pictures are accepted.",
    ImageProblem.TOO_MANY_PIXELS: "The picture has too many pixels.",
    ImageProblem.TOO_EXPENSIVE: "The picture takes too much time or memory to decode.",
}


class UnusableImage(Exception):
    """The picture cannot be used; `message` says why and quotes nothing of it."""

    def __init__(self, problem: ImageProblem) -> None:
        self.problem = problem
        self.message = _MESSAGES[problem]
        super().__init__(self.message)


@dataclass(frozen=True, slots=True)
class Stripped:
    """A file without its metadata, and what its headers say; sizes are as stored."""

    content: bytes
    media_type: str
    width: int
    height: int
    orientation: int
    """EXIF's, 1 to 8: how a viewer turns the stored pixels."""
    decoding_bytes_per_pixel: int
    """What decoding holds at once, at least: enough to refuse before the work, not within it."""
    is_plain: bool = True
    """Eight bits a sample, no palette, and nothing behind the last row."""
    transparent: tuple[int, ...] | None = None
    """The one colour that PNG's tRNS makes transparent, in 8-bit samples of grey or RGB."""


def check(*, is_sound: bool) -> None:
    """Refuse a file whose structure is not sound."""
    if not is_sound:
        raise UnusableImage(ImageProblem.UNREADABLE)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture by the size that its header claims."""
    check(is_sound=width > 0 and height > 0)
    if max(width, height) > MAX_EDGE_PIXELS or width * height > max_pixels:
        raise UnusableImage(ImageProblem.TOO_MANY_PIXELS)


def is_profile(profile: bytes) -> bool:
    """Whether this is a colour profile to keep; its signature is at byte 36 (ICC.1:2022, 7.2)."""
    return len(profile) <= MAX_PROFILE_BYTES and profile[36:40] == b"acsp"
