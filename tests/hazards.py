"""Hazardous and unusual files that a client may upload as an image, each with its right answer.

All are made here, from Pillow, zlib and struct; none is larger than a few megabytes.
"""

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain

from PIL import Image, ImageDraw

from gateway.media.decoder import ImageFacts, ImageProblem

MAX_PIXELS = 40_000_000
"""The limit that the expected answers assume."""

SECRET = b"52.5200-north-13.4050-east"
SCRIPT = b"<script>alert(document.domain)</script>"

UNSUPPORTED, UNREADABLE, ANIMATED, TOO_MANY_PIXELS, TOO_EXPENSIVE = ImageProblem


@dataclass(frozen=True)
class Hazard:
    """A file with the problem for which it is refused, or the image that is left of it."""

    name: str
    content: bytes
    expected: ImageProblem | None
    image: ImageFacts | None = None
    """The facts of an accepted file after cleaning, without its size in bytes."""
    hidden: tuple[bytes, ...] = ()
    """The bytes beside the pixels that cleaning must remove."""


def accepted(
    name: str,
    content: bytes,
    media_type: str,
    size: tuple[int, int] = (48, 32),
    *,
    alpha: bool = False,
    transparent: bool = False,
    hidden: tuple[bytes, ...] = (),
) -> Hazard:
    for part in hidden:
        assert part in content, f"{name} does not carry what it should hide"
    image = ImageFacts(f"image/{media_type}", *size, 0, alpha, transparent)
    return Hazard(name, content, None, image, hidden)


# Material


def drawing(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
    """An image with four different corners, so that every rotation shows."""
    image = Image.radial_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, size[0] // 3, size[1] // 3), fill=(250, 20, 20))
    draw.rectangle((0, size[1] // 2, size[0] // 4, size[1]), fill=(20, 20, 250))
    if mode not in {"LA", "RGBA"}:
        return image.convert(mode)
    alpha = Image.linear_gradient("L").resize(size)
    alpha.paste(0, (0, 0, size[0] // 2, size[1] // 2))
    image = image.convert(mode[:-1])
    image.putalpha(alpha)
    return image


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def chunk(kind: bytes, payload: bytes) -> bytes:
    checked = kind + payload
    return struct.pack(">I", len(payload)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def ihdr(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def idat(raw: bytes) -> bytes:
    return chunk(b"IDAT", zlib.compress(raw))


IEND = chunk(b"IEND", b"")


def with_chunks(content: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks behind its header."""
    place = 8 + 25
    return content[:place] + b"".join(chunks) + content[place:]


def with_segments(content: bytes, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with more segments at its start."""
    parts = [struct.pack(">BBH", 0xFF, mark, len(load) + 2) + load for mark, load in segments]
    return content[:2] + b"".join(parts) + content[2:]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack("<4sI", kind, len(load)) + load + b"\0" * (len(load) % 2)
        for kind, load in chunks
    ]
    body = b"WEBP" + b"".join(parts)
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes([flags, 0, 0, 0]) + sizes


def exif(orientation: int = 1) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    data[0x010F] = "Camera of a person"
    data[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0), 28: SECRET}
    return data.tobytes()


@cache
def plain(form: str) -> bytes:
    return encoded(drawing(), form)


# Hazards


def bombs() -> Iterator[Hazard]:
    zeros = bytes(30_000_000)
    tiny = idat(bytes(10))
    yield Hazard("png claiming 30000x30000", png(ihdr(30000, 30000), tiny, IEND), TOO_MANY_PIXELS)
    row = bytes(1 + 12000 // 8)
    one_bit = png(ihdr(12000, 12000, 1, 0), idat(row * 12000), IEND)
    yield Hazard("png with 12000x12000 real pixels of one bit", one_bit, TOO_MANY_PIXELS)
    packed = zlib.compress(zeros)
    yield accepted(
        "png with a bomb as colour profile",
        with_chunks(plain("PNG"), chunk(b"iCCP", b"p\0\0" + packed)),
        "png",
        hidden=(b"iCCP",),
    )
    yield accepted(
        "png with a bomb as text",
        with_chunks(plain("PNG"), chunk(b"zTXt", b"Comment\0\0" + packed)),
        "png",
        hidden=(b"zTXt",),
    )
    yield accepted(
        "png with a bomb as international text",
        with_chunks(plain("PNG"), chunk(b"iTXt", b"Comment\0\1\0\0\0" + packed)),
        "png",
        hidden=(b"iTXt",),
    )
    behind = png(ihdr(1, 1), idat(b"\0\1\2\3" + zeros), IEND)
    yield accepted("png with a bomb behind its last row", behind, "png", (1, 1))
    many = with_chunks(plain("PNG"), chunk(b"tEXt", b"") * 70_000)
    yield Hazard("png of seventy thousand chunks", many, TOO_EXPENSIVE)
    progressive = encoded(drawing(), "JPEG", progressive=True)
    last_scan = progressive.rindex(b"\xff\xda")
    scans = progressive[:-2] + progressive[last_scan:-2] * 500 + b"\xff\xd9"
    yield Hazard("jpeg of five hundred scans", scans, TOO_EXPENSIVE)


def claims() -> Iterator[Hazard]:
    """Headers without pixels, or with false sizes."""
    for width, height, problem in (
        (64, 64, UNREADABLE),
        (0, 64, UNREADABLE),
        (64, 0, UNREADABLE),
        (0xFFFFFFFF, 64, TOO_MANY_PIXELS),
        (0x80000000, 0x80000000, TOO_MANY_PIXELS),
        (16385, 1, TOO_MANY_PIXELS),
        (7000, 7000, TOO_MANY_PIXELS),
    ):
        yield Hazard(f"png header of {width}x{height}", png(ihdr(width, height)), problem)
    for width, height, problem in ((64, 64, UNREADABLE), (65535, 65535, TOO_MANY_PIXELS)):
        frame = struct.pack(">BHHB9x", 8, height, width, 3)
        content = with_segments(b"\xff\xd8\xff\xd9", (0xC0, frame))
        yield Hazard(f"jpeg header of {width}x{height}", content, problem)
        content = riff((b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)))
        size = f"{width & 0x3FFF}x{height & 0x3FFF}"
        yield Hazard(f"lossy webp header of {size}", content, problem)
    lossless = riff((b"VP8L", b"\x2f\xff\xff\xff\x0f"))
    yield Hazard("lossless webp header of 16384x16384", lossless, TOO_MANY_PIXELS)
    wide = drawing(size=(16384, 1))
    yield accepted("png of 16384x1", encoded(wide, "PNG"), "png", (16384, 1))
    yield accepted("jpeg of 16384x1", encoded(wide, "JPEG"), "jpeg", (16384, 1))


def cut_off() -> Iterator[Hazard]:
    for form in ("PNG", "JPEG", "WEBP"):
        content = plain(form)
        for percent in (3, 10, 50, 90):
            cut = content[: max(12, len(content) * percent // 100)]
            yield Hazard(f"{form} cut off at {percent} %", cut, UNREADABLE)
        yield Hazard(f"{form} without its last byte", content[:-1], UNREADABLE)
    yield Hazard("png signature alone", png(), UNREADABLE)
    yield Hazard("jpeg signature alone", b"\xff\xd8\xff", UNREADABLE)
    yield Hazard("webp signature alone", b"RIFF\4\0\0\0WEBP", UNREADABLE)
    yield Hazard("nothing", b"", UNSUPPORTED)
    yield Hazard("one byte", b"\x89", UNSUPPORTED)


def broken_pngs() -> Iterator[Hazard]:
    content, head = plain("PNG"), ihdr(8, 8)
    rows = idat(bytes(25) * 8)
    wrong_crc = content.replace(b"IDAT\x78", b"IDAT\x79")
    yield Hazard("png with a wrong checksum", wrong_crc, UNREADABLE)
    wrong_header = content[:29] + bytes([content[29] ^ 1]) + content[30:]
    yield Hazard("png with a wrong checksum of its header", wrong_header, UNREADABLE)
    yield Hazard("png without end", content.removesuffix(IEND), UNREADABLE)
    yield Hazard("png without pixels", png(head, IEND), UNREADABLE)
    yield Hazard("png palette without colours", png(ihdr(8, 8, 8, 3), rows, IEND), UNREADABLE)
    garbage = chunk(b"IDAT", b"no zlib stream at all")
    yield Hazard("png with garbage for pixels", png(head, garbage, IEND), UNREADABLE)
    yield Hazard("png with too few rows", png(head, idat(bytes(25) * 5), IEND), UNREADABLE)
    yield Hazard("png with two headers", with_chunks(content, head), UNREADABLE)
    endless = png(head, b"\xff\xff\xff\xffIDAT", rows)
    yield Hazard("png with a chunk of four gigabytes", endless, UNREADABLE)
    yield Hazard("png with depth 3", png(ihdr(8, 8, 3), rows, IEND), UNREADABLE)
    yield Hazard("png with colour type 5", png(ihdr(8, 8, 8, 5), rows, IEND), UNREADABLE)
    unknown = with_chunks(content, chunk(b"ABCD", b""))
    yield Hazard("png with an unknown critical chunk", unknown, UNREADABLE)
    yield Hazard(
        "png for Apple's telephones", with_chunks(content, chunk(b"CgBI", b"")), UNREADABLE
    )
    filters = png(head, idat(b"\x09" + bytes(24) + bytes(25) * 7), IEND)
    yield Hazard("png with an unknown filter", filters, UNREADABLE)


def broken_webps() -> Iterator[Hazard]:
    content = plain("WEBP")
    bitstream = (b"VP8 ", content[20:])
    for name, size in (("larger", len(content)), ("smaller", 100), ("huge", 0xFFFFFFFE)):
        lying = content[:4] + struct.pack("<I", size) + content[8:]
        yield Hazard(f"webp with a {name} RIFF size than true", lying, UNREADABLE)
    other = riff(vp8x(4000, 4000), bitstream)
    yield Hazard("webp with another canvas than its image", other, UNREADABLE)
    huge = riff(vp8x(1 << 24, 1 << 24), bitstream)
    yield Hazard("webp with a canvas of 16777216x16777216", huge, TOO_MANY_PIXELS)
    yield Hazard("webp with two images", riff(bitstream, bitstream), UNREADABLE)
    garbage = riff((b"VP8 ", content[20:30] + b"garbage" * 20))
    yield Hazard("webp with garbage for pixels", garbage, UNREADABLE)
    yield Hazard("webp without an image", riff(vp8x(8, 8)), UNREADABLE)


def polyglots() -> Iterator[Hazard]:
    archive = b"PK\3\4" + SECRET + b"PK\5\6" + bytes(18)
    for form in ("PNG", "JPEG", "WEBP"):
        kind, content = form.lower(), plain(form)
        for name, tail in (("zip", archive), ("html", SCRIPT), ("php", b"<?php system($_GET[0]);")):
            yield accepted(f"{kind} and {name}", content + tail, kind, hidden=(tail,))
        yield accepted(
            f"{kind} padded with zeros", content + bytes(4096), kind, hidden=(bytes(99),)
        )
        yield accepted(f"{kind} twice", content * 2, kind, hidden=(content * 2,))
    yield Hazard("gif and javascript", b"GIF89a=1;alert(1)//" + bytes(64), UNSUPPORTED)
    comment = with_segments(plain("JPEG"), (0xFE, b"<!--" + SCRIPT + b"-->"))
    yield accepted("jpeg with html for a comment", comment, "jpeg", hidden=(SCRIPT,))
    row = b"\0\1\2\3"
    for place, data in (
        ("in", zlib.compress(row + SCRIPT, 0)),
        ("behind", zlib.compress(row) + SCRIPT),
    ):
        content = png(ihdr(1, 1), chunk(b"IDAT", data), IEND)
        name = f"png with html {place} its pixel data"
        yield accepted(name, content, "png", (1, 1), hidden=(SCRIPT,))
    stray = plain("JPEG").replace(b"\xff\xdb", SCRIPT + b"\xff\xdb", 1)
    yield accepted("jpeg with html between its segments", stray, "jpeg", hidden=(SCRIPT,))
    long_gamma = with_chunks(plain("PNG"), chunk(b"gAMA", bytes(4) + SCRIPT))
    yield accepted("png with html for a gamma", long_gamma, "png", hidden=(SCRIPT,))
    thumbnail = bytearray(plain("JPEG"))
    struct.pack_into(">H", thumbnail, 4, 16 + 3 * 16)
    thumbnail[18:20] = b"\x04\x04"
    thumbnail[20:20] = SECRET.ljust(48, b".")
    yield accepted("jpeg with a thumbnail", bytes(thumbnail), "jpeg", hidden=(SECRET,))


def private() -> Iterator[Hazard]:
    """Metadata that state the place, time and author of an image."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + SECRET + b"</x:xmpmeta>"
    for form in ("PNG", "JPEG", "WEBP"):
        located = encoded(drawing(), form, exif=exif())
        yield accepted(f"{form} with a place in EXIF", located, form.lower(), hidden=(SECRET,))
    for name, load in (
        ("XMP", (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)),
        ("IPTC", (0xED, b"Photoshop 3.0\x008BIM\4\4" + SECRET)),
        ("a maker's note", (0xE1, b"Exif\0\0II*\0" + SECRET * 2000)),
        ("a false profile", (0xE2, b"ICC_PROFILE\0\1\1" + SECRET)),
        ("an unknown segment", (0xE9, SECRET)),
    ):
        content = with_segments(plain("JPEG"), load)
        yield accepted(f"jpeg with {name}", content, "jpeg", hidden=(SECRET,))
    for kind, text in (
        (b"tEXt", b"Comment\0" + SECRET),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        (b"prIv", SECRET),
    ):
        content = with_chunks(plain("PNG"), chunk(kind, text))
        yield accepted(f"png with {kind.decode()}", content, "png", hidden=(SECRET,))
    timed = with_chunks(plain("PNG"), chunk(b"tIME", b"\x07\xea\1\2\3\4\5"))
    yield accepted("png with a time", timed, "png", hidden=(b"tIME",))
    described = encoded(drawing(), "WEBP", xmp=xmp)
    yield accepted("webp with XMP", described, "webp", hidden=(SECRET,))
    bitstream = (b"VP8 ", plain("WEBP")[20:])
    extra = riff(vp8x(48, 32), (b"prIv", SECRET), bitstream, (b"junk", SECRET))
    yield accepted("webp with unknown chunks", extra, "webp", hidden=(SECRET,))


def turned() -> Iterator[Hazard]:
    for orientation in range(1, 10):
        content = encoded(drawing(), "JPEG", exif=exif(orientation))
        size = (32, 48) if orientation in {5, 6, 7, 8} else (48, 32)
        name = f"jpeg of orientation {orientation}"
        yield accepted(name, content, "jpeg", size, hidden=(SECRET,))
    for form in ("PNG", "WEBP"):
        content = encoded(drawing(), form, exif=exif(6))
        name = f"{form} of orientation 6"
        yield accepted(name, content, form.lower(), (32, 48), hidden=(SECRET,))
    grey = encoded(drawing("L"), "JPEG", exif=exif(8))
    yield accepted("grey jpeg of orientation 8", grey, "jpeg", (32, 48), hidden=(SECRET,))


def odd_pngs() -> Iterator[Hazard]:
    deep_grey = drawing("L").convert("I;16").point(lambda value: value * 257)
    yield accepted("png of 16-bit grey", encoded(deep_grey, "PNG"), "png")
    row = b"\0" + struct.pack(">12H", *range(0, 60000, 5000))
    yield accepted("png of 16-bit RGB", png(ihdr(4, 3, 16), idat(row * 3), IEND), "png", (4, 3))
    key = chunk(b"tRNS", struct.pack(">3H", 15000, 20000, 25000))
    deep = png(ihdr(4, 3, 16), key, idat(row * 3), IEND)
    yield accepted(
        "png of 16-bit RGB with a transparent colour",
        deep,
        "png",
        (4, 3),
        alpha=True,
        transparent=True,
    )
    grey = chunk(b"tRNS", b"\0\5")
    four_bits = png(ihdr(2, 1, 4, 0), grey, idat(b"\0\x5a"), IEND)
    yield accepted(
        "png of 4-bit grey with a transparent grey",
        four_bits,
        "png",
        (2, 1),
        alpha=True,
        transparent=True,
    )
    palette = drawing("P")
    yield accepted("png with a palette", encoded(palette, "PNG"), "png")
    clear = encoded(palette, "PNG", transparency=palette.getpixel((0, 0)))
    yield accepted(
        "png with a transparent palette colour", clear, "png", alpha=True, transparent=True
    )
    yield accepted("png of one bit", encoded(drawing("1"), "PNG"), "png")
    yield accepted("png of grey", encoded(drawing("L"), "PNG"), "png")
    for mode in ("LA", "RGBA"):
        content = encoded(drawing(mode), "PNG")
        yield accepted(f"png of {mode}", content, "png", alpha=True, transparent=True)
    keyed = encoded(drawing(), "PNG", transparency=(250, 20, 20))
    name = "png with a transparent colour"
    yield accepted(name, keyed, "png", alpha=True, transparent=True)
    unused = encoded(drawing(), "PNG", transparency=(1, 255, 3))
    yield accepted("png with a transparent colour that it lacks", unused, "png", alpha=True)
    passes = (b"\1", b"\3", b"\7\x09", b"\2", b"\x08", b"\4\5\6")  # of 1 2 3, 4 5 6, 7 8 9
    rows = idat(b"".join(b"\0" + row for row in passes))
    adam7 = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 3, 8, 0, 0, 0, 1))
    yield accepted("interlaced png", png(adam7, rows, IEND), "png", (3, 3))


def odd_webps() -> Iterator[Hazard]:
    for name, options in (("lossy", {}), ("lossless", {"lossless": True})):
        content = encoded(drawing("RGBA"), "WEBP", **options)
        full_name = f"{name} webp with alpha"
        yield accepted(full_name, content, "webp", alpha=True, transparent=True)


def odd_jpegs() -> Iterator[Hazard]:
    yield accepted("jpeg of CMYK", encoded(drawing("CMYK"), "JPEG"), "jpeg")
    yield accepted("jpeg of grey", encoded(drawing("L"), "JPEG"), "jpeg")
    progressive = encoded(drawing(size=(200, 150)), "JPEG", progressive=True, quality=95)
    yield accepted("progressive jpeg", progressive, "jpeg", (200, 150))
    restarts = encoded(drawing(size=(200, 150)), "JPEG", restart_marker_blocks=2)
    yield accepted("jpeg with restart markers", restarts, "jpeg", (200, 150))
    arithmetic = plain("JPEG").replace(b"\xff\xc0", b"\xff\xc9")
    yield Hazard("jpeg that says arithmetic coding", arithmetic, UNREADABLE)
    frame = plain("JPEG").index(b"\xff\xc0")
    twice = plain("JPEG")[:frame] + plain("JPEG")[frame : frame + 19] + plain("JPEG")[frame:]
    yield Hazard("jpeg with two frames", twice, UNREADABLE)
    deep = plain("JPEG")[: frame + 4] + b"\x0c" + plain("JPEG")[frame + 5 :]
    yield Hazard("jpeg of 12 bits", deep, UNREADABLE)
    no_tables = plain("JPEG").replace(b"\xff\xdb", b"\xff\xfe")
    yield Hazard("jpeg without quantization tables", no_tables, UNREADABLE)
    nothing = with_segments(b"\xff\xd8\xff\xd9", (0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"))
    yield Hazard("jpeg without a frame", nothing, UNREADABLE)


def several_frames() -> Iterator[Hazard]:
    frames = [drawing(), drawing("L").convert("RGB"), drawing().rotate(180)]
    for name, form, problem in (
        ("animated gif", "GIF", UNSUPPORTED),
        ("animated png", "PNG", ANIMATED),
        ("animated webp", "WEBP", ANIMATED),
    ):
        content = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)
        yield Hazard(name, content, problem)
        if form == "WEBP":
            unmarked = bytearray(content)
            unmarked[20] &= ~0x02
            yield Hazard("animated webp that hides it", bytes(unmarked), ANIMATED)
    mpo = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    stereo = bytearray(mpo)
    first_image = mpo.index(b"MPF\0") + 4 + 50
    assert struct.unpack_from("<I", mpo, first_image) == (0x030000,)  # a baseline image
    struct.pack_into("<I", stereo, first_image, 0x020002)  # of several views
    yield Hazard("stereo mpo", bytes(stereo), ANIMATED)
    yield accepted("jpeg with a gain map behind it", mpo, "jpeg", hidden=(b"MPF\0",))
    single = with_chunks(plain("PNG"), chunk(b"acTL", struct.pack(">II", 1, 0)))
    yield accepted("animated png of one frame", single, "png", hidden=(b"acTL",))


def foreign() -> Iterator[Hazard]:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'
    files = {
        "svg": svg,
        "svgz": gzip.compress(svg),
        "html": b"<!doctype html>" + SCRIPT,
        "text": b"just words\n",
        "pdf": b"%PDF-1.7\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd)(r)file\n",
        "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 100, 100, 8, 3) + bytes(32),
        "heic": struct.pack(">I", 24) + b"ftypheic\0\0\0\0heicmif1" + bytes(64),
        "avif": struct.pack(">I", 24) + b"ftypavif\0\0\0\0avifmif1" + bytes(64),
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64),
        "jpeg xl": b"\xff\x0a" + bytes(64),
        "zip": b"PK\3\4" + bytes(64),
        "executable": b"\x7fELF" + bytes(64),
        "wave": b"RIFF\x24\0\0\0WAVEfmt " + bytes(28),
        "zeros": bytes(4096),
        "png behind a byte order mark": b"\xef\xbb\xbf" + plain("PNG"),
        "png behind a newline": b"\n" + plain("PNG"),
    }
    for form in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "DDS", "SGI"):
        files[form.lower()] = encoded(drawing(), form)
    for name, content in files.items():
        yield Hazard(name, content, UNSUPPORTED)


@cache
def hazards() -> list[Hazard]:
    """All hazards; their names are distinct."""
    kinds = (
        bombs,
        claims,
        cut_off,
        broken_pngs,
        broken_webps,
        polyglots,
        private,
        turned,
        odd_pngs,
        odd_webps,
        odd_jpegs,
        several_frames,
        foreign,
    )
    return list(chain.from_iterable(kind() for kind in kinds))
