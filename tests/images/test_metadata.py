"""Removal of metadata: any bytes are refused or become a clean file."""

import random
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.ImageCms import ImageCmsProfile, createProfile

from gateway.media.metadata import strip_metadata
from gateway.media.metadata.common import (
    MAX_PROFILE_BYTES,
    ImageProblem,
    UnusableImage,
    is_profile,
)
from gateway.media.metadata.exif import exif_orientation, has_several_views
from tests.hazards import IEND, MAX_PIXELS, chunk, exif, hazards, idat, ihdr, plain, png

SMALL = [hazard.content for hazard in hazards() if len(hazard.content) < 20_000]
CLEAN = {form: plain(form) for form in ("PNG", "JPEG", "WEBP")}


ADAM7 = (
    *("16462646", "77777777", "56565656", "77777777"),
    *("36463646", "77777777", "56565656", "77777777"),
)
"""The pass of each pixel of a square of eight (PNG 3rd edition, 8.1)."""


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A hazard with some bytes changed, taken out or put in."""
    content = bytearray(draw(st.sampled_from(SMALL)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        content[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(content)


@settings(deadline=None, max_examples=300)
@given(damaged_files())
def test_a_damaged_file_is_refused_or_comes_out_clean(content: bytes) -> None:
    with suppress(UnusableImage):
        stripped = strip_metadata(content, max_pixels=MAX_PIXELS)
        again = strip_metadata(stripped.content, max_pixels=MAX_PIXELS)
        assert again.content == stripped.content
        assert (again.width, again.height, again.orientation) == (
            stripped.width,
            stripped.height,
            1,
        )


@given(st.binary(max_size=200), st.sampled_from([b"II*\0", b"MM\0*", b""]))
def test_any_bytes_for_exif_name_an_orientation(content: bytes, head: bytes) -> None:
    assert exif_orientation(head + content) in range(1, 9)
    assert has_several_views(head + content) in {True, False}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_found_with_and_without_its_prefix(orientation: int) -> None:
    data = exif(orientation)
    assert exif_orientation(data) == orientation
    assert exif_orientation(data.removeprefix(b"Exif\0\0")) == orientation


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_there_is_not_is_none(orientation: int) -> None:
    assert exif_orientation(exif(orientation)) == 1


def test_entries_beyond_the_count_of_a_directory_are_ignored() -> None:
    tiff = bytearray(exif(6).removeprefix(b"Exif\0\0"))
    order = ">" if tiff.startswith(b"MM") else "<"
    (directory,) = struct.unpack_from(order + "I", tiff, 4)
    struct.pack_into(order + "H", tiff, directory, 0)
    assert exif_orientation(bytes(tiff)) == 1


@pytest.mark.parametrize("form", CLEAN)
def test_a_file_without_metadata_stays_byte_for_byte(form: str) -> None:
    assert strip_metadata(CLEAN[form], max_pixels=MAX_PIXELS).content == CLEAN[form]


@pytest.mark.parametrize("form", CLEAN)
def test_one_pixel_too_many_is_too_many(form: str) -> None:
    strip_metadata(CLEAN[form], max_pixels=48 * 32)
    with pytest.raises(UnusableImage) as refused:
        strip_metadata(CLEAN[form], max_pixels=48 * 32 - 1)
    assert refused.value.problem == ImageProblem.TOO_MANY_PIXELS


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 4), (4, 0)])
def test_an_image_without_pixels_is_unreadable(width: int, height: int) -> None:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = png(chunk(b"IHDR", header), idat(bytes(height * (1 + width))), IEND)
    with pytest.raises(UnusableImage) as refused:
        strip_metadata(content, max_pixels=MAX_PIXELS)
    assert refused.value.problem == ImageProblem.UNREADABLE


@pytest.mark.parametrize(("colour", "has_rows"), [(0, False), (3, True)], ids=["rows", "palette"])
def test_a_png_without_rows_or_its_palette_is_unreadable(colour: int, *, has_rows: bool) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, colour, 0, 0, 0))
    rows = [idat(bytes(4 * 5))] if has_rows else []
    with pytest.raises(UnusableImage) as refused:
        strip_metadata(png(header, *rows, IEND), max_pixels=MAX_PIXELS)
    assert refused.value.problem == ImageProblem.UNREADABLE


@pytest.mark.parametrize("form", CLEAN)
def test_a_file_cut_off_anywhere_is_refused(form: str) -> None:
    content = CLEAN[form]
    for length in range(len(content)):
        with pytest.raises(UnusableImage):
            strip_metadata(content[:length], max_pixels=MAX_PIXELS)


def interlaced(width: int, height: int, depth: int, colour: int, missing: int = 0) -> bytes:
    """A black interlaced PNG; `missing` bytes fewer than its rows take."""
    bits = depth * (3 if colour == 2 else 1)
    total = 0
    for number in "1234567":
        rows = [[ADAM7[y % 8][x % 8] for x in range(width)].count(number) for y in range(height)]
        total += sum(1 + (columns * bits + 7) // 8 for columns in rows if columns)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 1)
    return png(chunk(b"IHDR", header), idat(bytes(total - missing)), IEND)


@pytest.mark.parametrize(("depth", "colour"), [(1, 0), (8, 2), (16, 2)])
def test_an_interlaced_png_has_exactly_the_rows_of_its_seven_passes(
    depth: int, colour: int
) -> None:
    for width, height in product(range(1, 18), range(1, 18)):
        whole = interlaced(width, height, depth, colour)
        stripped = strip_metadata(whole, max_pixels=MAX_PIXELS)
        assert (stripped.content, stripped.width, stripped.height) == (whole, width, height)
        with pytest.raises(UnusableImage):
            strip_metadata(
                interlaced(width, height, depth, colour, missing=1), max_pixels=MAX_PIXELS
            )


def test_a_colour_profile_stays_in_a_png_and_what_is_none_goes() -> None:
    profile = ImageCmsProfile(createProfile("sRGB")).tobytes()
    out = BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG", icc_profile=profile)
    content = out.getvalue()
    assert strip_metadata(content, max_pixels=MAX_PIXELS).content == content
    out = BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG", icc_profile=b"a note, and no profile" * 9)
    stripped = strip_metadata(out.getvalue(), max_pixels=MAX_PIXELS).content
    assert b"iCCP" in out.getvalue()
    assert b"iCCP" not in stripped


def test_a_profile_of_the_largest_size_is_one_and_a_larger_is_none() -> None:
    profile = bytes(36) + b"acsp" + bytes(MAX_PROFILE_BYTES - 40)
    assert is_profile(profile)
    assert not is_profile(profile + b"\0")


def test_a_cleaned_extended_webp_has_a_header_without_reserved_bits() -> None:
    out = BytesIO()
    Image.new("RGB", (4, 4)).save(out, "WEBP", xmp=b"a note")
    content = out.getvalue()
    assert content[12:16] == b"VP8X"
    stripped = strip_metadata(content, max_pixels=MAX_PIXELS).content
    assert stripped[12:16] == b"VP8X"
    assert stripped[20:30] == bytes([0, 0, 0, 0, 3, 0, 0, 3, 0, 0])


@pytest.mark.parametrize(
    ("is_progressive", "marker", "kept_bytes"),
    [(False, b"\xff\xc0", 0), (False, b"\xff\xc2", 6), (True, b"\xff\xc0", 6)],
    ids=["one scan", "progressive in one scan", "several scans"],
)
def test_a_jpeg_that_is_decoded_from_kept_coefficients_counts_their_memory(
    *, is_progressive: bool, marker: bytes, kept_bytes: int
) -> None:
    """Two bytes for each of three components, where the last scan may change any pixel."""
    out = BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG", progressive=is_progressive)
    content = out.getvalue().replace(b"\xff\xc2" if is_progressive else b"\xff\xc0", marker, 1)
    stripped = strip_metadata(content, max_pixels=MAX_PIXELS)
    assert stripped.check_bytes_per_pixel == kept_bytes
    assert stripped.decoding_bytes_per_pixel == 4 + kept_bytes


@pytest.mark.parametrize(
    ("mode", "bytes_per_pixel"), [("L", 1), ("P", 1), ("LA", 4), ("RGB", 4), ("RGBA", 4)]
)
def test_a_png_counts_the_memory_of_its_decoded_pixels(mode: str, bytes_per_pixel: int) -> None:
    out = BytesIO()
    Image.new(mode, (16, 16)).save(out, "PNG")
    stripped = strip_metadata(out.getvalue(), max_pixels=MAX_PIXELS)
    assert stripped.decoding_bytes_per_pixel == bytes_per_pixel


def test_a_jpeg_may_have_64_scans() -> None:
    out = BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG", progressive=True)
    content = out.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    most = content[:-2] + last * (64 - content.count(b"\xff\xda"))
    assert strip_metadata(most + b"\xff\xd9", max_pixels=MAX_PIXELS).width == 16
    with pytest.raises(UnusableImage) as refused:
        strip_metadata(most + last + b"\xff\xd9", max_pixels=MAX_PIXELS)
    assert refused.value.problem is ImageProblem.TOO_EXPENSIVE


@pytest.mark.parametrize("length", [0, 1])
def test_a_jpeg_with_a_segment_shorter_than_its_own_length_is_unreadable(length: int) -> None:
    content = plain("JPEG")
    short = content[:2] + b"\xff\xfe" + length.to_bytes(2, "big") + content[2:]
    with pytest.raises(UnusableImage) as refused:
        strip_metadata(short, max_pixels=MAX_PIXELS)
    assert refused.value.problem is ImageProblem.UNREADABLE


def test_a_jpeg_without_a_scan_is_unreadable() -> None:
    content = plain("JPEG")
    without = content[: content.index(b"\xff\xda")] + b"\xff\xd9"
    with pytest.raises(UnusableImage) as refused:
        strip_metadata(without, max_pixels=MAX_PIXELS)
    assert refused.value.problem is ImageProblem.UNREADABLE


def test_a_png_is_read_in_pieces() -> None:
    noise = random.Random(1).randbytes(3 * 400 * 400)
    rows = b"".join(b"\0" + noise[start : start + 1200] for start in range(0, len(noise), 1200))
    packed = zlib.compress(rows)
    halves = [chunk(b"IDAT", packed[:100_000]), chunk(b"IDAT", packed[100_000:])]
    content = png(ihdr(400, 400), *halves, IEND)
    assert strip_metadata(content, max_pixels=MAX_PIXELS).content == content


def test_a_jpeg_that_begins_twice_is_unreadable() -> None:
    content = plain("JPEG")
    with pytest.raises(UnusableImage) as refused:
        strip_metadata(content[:2] + b"\xff\xd8\x00\x02" + content[2:], max_pixels=MAX_PIXELS)
    assert refused.value.problem is ImageProblem.UNREADABLE


def test_a_lossless_webp_begins_with_its_signature() -> None:
    out = BytesIO()
    Image.new("RGB", (4, 4)).save(out, "WEBP", lossless=True)
    content = bytearray(out.getvalue())
    strip_metadata(bytes(content), max_pixels=MAX_PIXELS)
    content[content.index(b"VP8L") + 8] ^= 1
    with pytest.raises(UnusableImage):
        strip_metadata(bytes(content), max_pixels=MAX_PIXELS)
