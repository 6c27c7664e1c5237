"""The sandboxed decoder subprocess. It limits its own resources and contains no secrets.

Started by `gateway.media.decoder` as `python -I -m gateway.media.decoder_process FD MAX_PIXELS
MEMORY_BYTES`. It signals readiness by an empty line on the socket FD. A job is one line of JSON,
`["resample", width, height]`, with the descriptors of the files to read and, last, of the file to
write. The answer is one line of JSON: `{"image": …}`, `{"problem": …}` or `{"errno": …}`.
"""

import ctypes
import errno
import io
import json
import os
import resource
import signal
import socket
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from gateway.media.metadata import strip_metadata
from gateway.media.metadata.common import ENCODINGS, ImageProblem, UnusableImage
from gateway.media.source_types import SourceType, source_type_of, xmp_packet
from gateway.processes import forbid_core_dumps

MAX_JOB_BYTES = 1024
MAX_JOB_FILES = 24
MAX_OPEN_FILES = 40
"""A drawing has up to 16 inputs with a mask; all other jobs have four files at most."""
OUTPUT_MARGIN_BYTES = 64 * 1024 * 1024
"""Allowance beyond the pixels: a cleaned file keeps its size, and noise grows when encoded."""
OUTPUT_BYTES_PER_PIXEL = 4

UNPRIVILEGED_ID = 65_534
"""The overflow user and group, which own nothing by convention (`user_namespaces(7)`)."""
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
"""linux/prctl.h"""

STRIP_ROWS = 64
REDUCING_GAP = 2.0
"""Before it filters, Pillow averages an image down to this multiple of its new size or larger: half
the time, and at a quarter of the size colours differ by 0.5 of 255 (root mean square)."""
PNG_COMPRESSION = 3
"""A quarter of the time of zlib's 6, at about the same size."""
PNG_XMP = "XML:com.adobe.xmp"
JPEG_QUALITY = 95
THUMBNAIL_QUALITY = 70
LOSSLESS_EFFORT = 20

UNREADABLE = (
    # Pillow raises any of these on damaged images, depending on where the damage is.
    OSError,
    ValueError,
    SyntaxError,
    struct.error,
    zlib.error,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    Image.DecompressionBombError,
)

OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    # The classes themselves: `Image.open` would select other ones for some files, such as MPO.
    "image/png": PngImagePlugin.PngImageFile,
    "image/jpeg": JpegImagePlugin.JpegImageFile,
    "image/webp": WebPImagePlugin.WebPImageFile,
}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes each EXIF orientation."""
PLAIN_MODES = {"L", "LA", "RGB", "RGBA"}
PROFILE_SPACES = {"L": b"GRAY", "LA": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB "}


@dataclass(frozen=True, slots=True)
class JobLimits:
    """Limits of every job in this process."""

    max_pixels: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image as a viewer shows it, and its file without metadata if that shows the same.

    `image` is smaller than `size` where the file alone is needed.
    """

    image: Image.Image
    size: tuple[int, int]
    media_type: str
    profile: bytes | None
    file: bytes | None


@dataclass(frozen=True, slots=True)
class JobOutput:
    """Output file of a job, and its decoded image; `size` is set if `image` is a reduced draft."""

    content: bytes
    media_type: str
    image: Image.Image
    size: tuple[int, int] | None = None


def decode(
    data: bytes, limits: JobLimits, *, draft_edge: int | None = None, is_check: bool = False
) -> Decoded:
    """Decode an untrusted image completely; a JPEG with `draft_edge` at a sufficient scale only.

    With `is_check`, a JPEG that can be kept unchanged is decoded at an eighth of its size: the
    decoder reads all data at every scale, and this takes a fifth of the memory.

    Raises:
        UnusableImage: the gateway does not accept the image.
    """
    stripped = strip_metadata(data, max_pixels=limits.max_pixels)
    is_turned = stripped.orientation in TURNS
    # Checked in advance: out of memory, image libraries often report "damaged" instead.
    bytes_per_pixel = stripped.decoding_bytes_per_pixel
    if is_check and not is_turned and stripped.check_bytes_per_pixel is not None:
        bytes_per_pixel = stripped.check_bytes_per_pixel
    if stripped.width * stripped.height * bytes_per_pixel > free_bytes(limits):
        raise UnusableImage(ImageProblem.TOO_EXPENSIVE)
    try:
        image = OPENERS[stripped.media_type](io.BytesIO(stripped.content))
        if image.size != (stripped.width, stripped.height):
            raise UnusableImage(ImageProblem.UNREADABLE)
        is_cmyk = image.mode == "CMYK"
        is_same = stripped.is_plain and not is_cmyk and not is_turned
        if draft_edge is not None:
            image.draft(None, (draft_edge, draft_edge))
        elif is_check and is_same:
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
        profile = image.info.get("icc_profile")
        if image.mode == "I;16":
            image = high_bytes(image)
        image = plain(image, stripped.transparent, keeps_grey=stripped.is_plain)
    except UNREADABLE:
        raise UnusableImage(ImageProblem.UNREADABLE) from None
    if is_turned:
        image = image.transpose(TURNS[stripped.orientation])
    return Decoded(
        image=image,
        size=(stripped.width, stripped.height) if is_same else image.size,
        media_type=stripped.media_type,
        profile=profile if profile and profile[16:20] == PROFILE_SPACES[image.mode] else None,
        file=stripped.content if is_same else None,
    )


def plain(
    image: Image.Image, transparent: tuple[int, ...] | None, *, keeps_grey: bool
) -> Image.Image:
    """Convert to 8-bit grey or RGB, with alpha if the image has transparency."""
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode == "1":
        image.info.pop("transparency", None)
        image = image.convert("L")
    elif image.mode == "CMYK":
        image = image.convert("RGB")
    if image.mode not in PLAIN_MODES:
        raise UnusableImage(ImageProblem.UNREADABLE)
    if transparent is not None and image.mode in {"L", "RGB"}:
        # Pillow reads the samples of tRNS unscaled at every bit depth, so use the scaled ones.
        image.info["transparency"] = transparent if image.mode == "RGB" else transparent[0]
        image = image.convert(image.mode + "A")
    if not keeps_grey and image.mode in {"L", "LA"}:
        image = image.convert("RGBA" if image.mode == "LA" else "RGB")
    return image


def high_bytes(deep: Image.Image) -> Image.Image:
    """Convert 16-bit grey to 8-bit grey. Pillow itself would clip at 255.

    Takes the high bytes of the little-endian samples, some rows at a time: copies of the whole
    would take twice the memory of the image.
    """
    width, height = deep.size
    grey = Image.new("L", deep.size)
    for top in range(0, height, STRIP_ROWS):
        bottom = min(top + STRIP_ROWS, height)
        samples = deep.crop((0, top, width, bottom)).tobytes()
        grey.paste(Image.frombytes("L", (width, bottom - top), samples[1::2]), (0, top))
    grey.info = deep.info
    return grey


def encode(
    image: Image.Image,
    media_type: str,
    profile: bytes | None,
    quality: int | None = None,
    *,
    source_type: SourceType | None = None,
) -> bytes:
    """Encode the image with its colour profile, its source type, and no other metadata."""
    image.info = {}
    out = io.BytesIO()
    xmp = b"" if source_type is None else xmp_packet(source_type)
    if media_type == "image/jpeg":
        lossy = JPEG_QUALITY if quality is None else quality
        image.save(out, "JPEG", quality=lossy, subsampling=0, icc_profile=profile, xmp=xmp)
    elif media_type == "image/webp" and quality is not None:
        image.save(out, "WEBP", quality=quality, icc_profile=profile, xmp=xmp)
    elif media_type == "image/webp":
        image.save(
            out,
            "WEBP",
            lossless=True,
            exact=True,
            quality=LOSSLESS_EFFORT,
            method=0,
            icc_profile=profile,
            xmp=xmp,
        )
    else:
        chunks = PngImagePlugin.PngInfo()
        if xmp:
            chunks.add_itxt(PNG_XMP, xmp.decode())
        image.save(out, "PNG", compress_level=PNG_COMPRESSION, icc_profile=profile, pnginfo=chunks)
    return out.getvalue()


def clean(sources: list[bytes], sizes: list[int], limits: JobLimits) -> JobOutput:
    del sizes
    decoded = decode(sources[0], limits, is_check=True)
    content = decoded.file
    if content is None:
        content = encode(decoded.image, decoded.media_type, decoded.profile)
    return JobOutput(content, decoded.media_type, decoded.image, decoded.size)


def coloured(image: Image.Image) -> Image.Image:
    """Convert to RGB, or RGBA if the image has alpha."""
    return in_mode(image, "RGBA" if image.mode in {"LA", "RGBA"} else "RGB")


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert to `mode`, without the copy that Pillow makes if the image has it already."""
    return image if image.mode == mode else image.convert(mode)


def scaled(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize to exactly that size in RGB or RGBA; the pixels are unchanged if the size matches.

    Pillow multiplies by alpha before it filters, so that hidden colours do not bleed.
    """
    image = coloured(image)
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)


def resample(sources: list[bytes], sizes: list[int], limits: JobLimits) -> JobOutput:
    decoded = decode(sources[0], limits)
    image = scaled(decoded.image, *sizes)
    profile = decoded.profile if decoded.image.mode in {"RGB", "RGBA"} else None
    content = encode(image, "image/png", profile, source_type=source_type_of(sources[0]))
    return JobOutput(content, "image/png", image)


def reencode(sources: list[bytes], sizes: list[int], limits: JobLimits) -> JobOutput:
    number, quality = sizes
    media_type = ENCODINGS[number]
    decoded = decode(sources[0], limits)
    image = coloured(decoded.image)
    if media_type == "image/jpeg" and image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    profile = decoded.profile if decoded.image.mode in {"RGB", "RGBA"} else None
    content = encode(
        image,
        media_type,
        profile,
        None if quality < 0 else quality,
        source_type=source_type_of(sources[0]),
    )
    return JobOutput(content, media_type, image)


def editable(mask: Image.Image, width: int, height: int) -> Image.Image:
    """Return 255 where the mask is fully transparent, else 0; without alpha, 0 everywhere."""
    if mask.mode not in {"LA", "RGBA"}:
        return Image.new("L", (width, height), 0)
    opened = mask.getchannel("A").point([255, *[0] * 255])
    return opened.resize((width, height), Image.Resampling.NEAREST)


def composite(sources: list[bytes], sizes: list[int], limits: JobLimits) -> JobOutput:
    width, height = sizes
    opened = editable(decode(sources[1], limits).image, width, height)
    original = decode(sources[0], limits)
    outside = scaled(original.image, width, height)
    inside = scaled(decode(sources[2], limits).image, width, height)
    mode = "RGBA" if "RGBA" in {outside.mode, inside.mode} else "RGB"
    image = Image.composite(in_mode(inside, mode), in_mode(outside, mode), opened)
    # The model saw the original's samples without the profile, so the profile applies to its own.
    profile = original.profile if original.image.mode in {"RGB", "RGBA"} else None
    content = encode(image, "image/png", profile, source_type=SourceType.COMPOSITE)
    return JobOutput(content, "image/png", image)


def thumbnail(sources: list[bytes], sizes: list[int], limits: JobLimits) -> JobOutput:
    edge = sizes[0]
    image = coloured(decode(sources[0], limits, draft_edge=edge).image)
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    content = encode(
        image,
        "image/webp",
        None,
        THUMBNAIL_QUALITY,
        source_type=source_type_of(sources[0]),
    )
    return JobOutput(content, "image/webp", image)


Task = Callable[[list[bytes], list[Any], JobLimits], JobOutput]
"""The contents of the job's files, and the arguments after its name."""
TASKS: dict[str, Task] = {
    "clean": clean,
    "encode": reencode,
    "resample": resample,
    "composite": composite,
    "thumbnail": thumbnail,
}


def described(made: JobOutput) -> dict[str, str | int | bool]:
    """Return the fields of `gateway.media.decoder.ImageFacts`, without the file's size."""
    has_alpha = made.image.mode in {"LA", "RGBA"}
    alpha = made.image.getchannel("A").getextrema() if has_alpha else (255, 255)
    width, height = made.size or made.image.size
    return {
        "media_type": made.media_type,
        "width": width,
        "height": height,
        "has_alpha": has_alpha,
        "is_transparent": alpha[0] == 0,
    }


def read_whole(descriptor: int) -> bytes:
    """Read the whole file without moving the position, which the gateway shares."""
    parts: list[bytes] = []
    size = os.fstat(descriptor).st_size
    while (place := sum(map(len, parts))) < size:
        part = os.pread(descriptor, size - place, place)
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def write_whole(descriptor: int, content: bytes) -> None:
    """Replace the file's content without moving the position, which the gateway shares."""
    os.ftruncate(descriptor, 0)
    place = 0
    while place < len(content):
        place += os.pwrite(descriptor, memoryview(content)[place:], place)


def answer(
    job: bytes, descriptors: list[int], limits: JobLimits, tasks: Mapping[str, Task]
) -> dict[str, object]:
    """Do one job. A `MemoryError` ends the process, and so tells the gateway."""
    task, *arguments = json.loads(job)
    *readable, writable = descriptors
    try:
        sources = [read_whole(descriptor) for descriptor in readable]
        made = tasks[task](sources, arguments, limits)
        write_whole(writable, made.content)
        return {"image": described(made)}
    except UnusableImage as refused:
        return {"problem": refused.problem}
    except OSError as error:
        if error.errno == errno.EFBIG:
            return {"problem": ImageProblem.TOO_EXPENSIVE}
        return {"errno": error.errno or errno.EIO}


def receive_job(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Receive a job's line and descriptors, or an empty line if the gateway closed the socket."""
    job = b""
    descriptors: list[int] = []
    while not job.endswith(b"\n"):
        part, more, _, _ = socket.recv_fds(connection, MAX_JOB_BYTES, MAX_JOB_FILES)
        descriptors += more
        if not part:
            return b"", descriptors
        job += part
    return job, descriptors


def serve(connection: socket.socket, limits: JobLimits, tasks: Mapping[str, Task]) -> None:
    """Do jobs until the gateway closes the socket."""
    connection.sendall(b"\n")
    while True:
        job, descriptors = receive_job(connection)
        if not job:
            return
        try:
            reply = answer(job, descriptors, limits, tasks)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        connection.sendall(json.dumps(reply).encode() + b"\n")


def address_space_bytes() -> int:
    """Return the mapped memory of this process, or 0 if the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def free_bytes(limits: JobLimits) -> int:
    """Return the memory this process may still map; all of it on systems that do not count."""
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    mapped = address_space_bytes()
    return most - mapped if mapped and most != resource.RLIM_INFINITY else limits.memory_bytes


def leave_root() -> None:
    """Drop root for the unprivileged user, who can open no file or process of the gateway."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(UNPRIVILEGED_ID)
        os.setuid(UNPRIVILEGED_ID)


def limit_self(limits: JobLimits) -> None:
    """Drop, irrevocably, every privilege and resource that decoding does not need.

    Limits that the system does not support are skipped.
    """
    leave_root()
    forbid_core_dumps()
    # A terminal or supervisor signals the whole group; the gateway drains first, then ends this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    output_bytes = limits.max_pixels * OUTPUT_BYTES_PER_PIXEL + OUTPUT_MARGIN_BYTES
    for kind, most in (
        (resource.RLIMIT_FSIZE, output_bytes),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_AS, address_space_bytes() + limits.memory_bytes),
    ):
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def main(arguments: list[str], tasks: Mapping[str, Task]) -> None:
    """Serve the jobs that come over the socket."""
    descriptor, max_pixels, memory_bytes = map(int, arguments)
    limits = JobLimits(max_pixels, memory_bytes)
    warnings.simplefilter("ignore")  # they quote the image's content
    Image.MAX_IMAGE_PIXELS = None  # every header is checked against the gateway's own limit
    Image.preinit()  # import the encoders before the limits forbid opening files
    with socket.socket(fileno=descriptor) as connection:
        limit_self(limits)
        with suppress(ConnectionError, MemoryError):
            serve(connection, limits, tasks)


if __name__ == "__main__":
    main(sys.argv[1:], TASKS)
