"""Decodes untrusted images in sandboxed subprocesses, never in the gateway's own process.

`decoder_process` contains the code that runs there. Pixels are exchanged in shared files; only
jobs and answers cross the socket.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import BinaryIO

from gateway.errors import Unavailable
from gateway.load.gate import Gate, GateLimits, GateSlot
from gateway.media.metadata.common import ENCODINGS, MAX_EDGE_PIXELS, ImageProblem, UnusableImage

__all__ = [
    "Decoder",
    "DecoderBusy",
    "DecoderFailed",
    "DecoderLimits",
    "ImageFacts",
    "ImageProblem",
    "UnusableImage",
]

START_SECONDS = 30
MAX_ANSWER_BYTES = 4096
MEDIA_TYPES = frozenset({"image/png", "image/jpeg", "image/webp"})


class DecoderBusy(Exception):
    """No decoder process became free in time, or the decoder is closed."""


class DecoderFailed(Exception):
    """A failure that is not the image's fault: a process cannot start or write its output."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Properties of a written image; width and height in pixels, after EXIF rotation."""

    media_type: str
    width: int
    height: int
    size_bytes: int
    has_alpha: bool
    """True for an alpha channel, or a colour that is declared transparent."""
    is_transparent: bool
    """True if at least one pixel has alpha 0."""


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """Resource limits of one decoder: those of input images differ from those of output images."""

    processes: int
    job_seconds: float
    queue_seconds: float
    max_pixels: int
    """Per image, input or output."""
    memory_bytes: int
    """Per process, beyond the interpreter's own. As measured, a check takes up to 12 bytes per
    pixel (24 for WebP), a composite 28; images that need more are refused as too expensive."""
    max_waiting: int = 1024
    program: str = "gateway.media.decoder_process"
    """The module that runs in the processes."""


class Decoder:
    """Checks and transforms images with bounded concurrency; its first job starts each process.

    Files must have a descriptor. Sources are read from their beginning, at any position;
    targets are rewound. A job duplicates the descriptors, so a cancelled caller may close its
    files.
    """

    def __init__(self, limits: DecoderLimits) -> None:
        self._limits = limits
        self._gate = Gate(
            "decoder",
            GateLimits(
                most=limits.processes,
                most_of_one=limits.processes,
                max_waiting=limits.max_waiting,
                wait_seconds=limits.queue_seconds,
            ),
        )
        self._processes = [_Process(limits) for _ in range(limits.processes)]
        self._idle = deque(self._processes)
        # Threads of its own: a process dies with the thread that started it (see PR_SET_PDEATHSIG).
        self._threads = ThreadPoolExecutor(limits.processes, thread_name_prefix="decoder")

    async def clean(
        self, source: BinaryIO, target: BinaryIO, *, owner: Hashable = None
    ) -> ImageFacts:
        """Decode an image completely and write it to `target` without metadata.

        The pixels stay bit-identical unless EXIF requires a rotation or the pixel format is not
        widely supported: 16 bits, palettes, black and white, CMYK. Owners are served in turn.

        Raises:
            UnusableImage: the gateway does not accept the image.
            DecoderBusy: no process becomes free within `queue_seconds`.
            DecoderFailed: the image could not be tried.
        """
        return await self._run(["clean"], [source], target, owner)

    async def resample(
        self, source: BinaryIO, target: BinaryIO, *, width: int, height: int
    ) -> ImageFacts:
        """Write a PNG of exactly that size. Raises as `clean`, and ValueError for a bad size."""
        self._check_size(width, height)
        return await self._run(["resample", width, height], [source], target)

    async def encode(
        self, source: BinaryIO, target: BinaryIO, *, media_type: str, quality: int | None
    ) -> ImageFacts:
        """Write the image in that format; `quality` from 0 to 100 is for JPEG and WebP.

        Transparent pixels become white in a JPEG. Raises as `clean`.
        """
        job: list[str | int] = [
            "encode",
            ENCODINGS.index(media_type),
            -1 if quality is None else quality,
        ]
        return await self._run(job, [source], target)

    async def composite(
        self,
        original: BinaryIO,
        mask: BinaryIO,
        made: BinaryIO,
        target: BinaryIO,
        *,
        width: int,
        height: int,
    ) -> ImageFacts:
        """Write a PNG of that size: `made` where the mask's alpha is 0, elsewhere `original`.

        Outside the mask the pixels are the original's, bit-identical including alpha; those of the
        resampled original if its size differs. `mask` may be the same file as `original`. Raises
        as `clean`, and ValueError for a bad size.
        """
        self._check_size(width, height)
        return await self._run(["composite", width, height], [original, mask, made], target)

    async def thumbnail(self, source: BinaryIO, target: BinaryIO, *, max_edge: int) -> ImageFacts:
        """Write a WebP of at most `max_edge` pixels on either edge. Raises as `resample`."""
        self._check_size(max_edge, 1)
        return await self._run(["thumbnail", max_edge], [source], target)

    async def draw(
        self,
        drawing: Mapping[str, object],
        sources: Sequence[BinaryIO],
        target: BinaryIO,
        *,
        owner: Hashable,
    ) -> ImageFacts:
        """Draw an image (`drawing_process.DrawingJob`) with these inputs. Owners take turns.

        Raises as `clean`.
        """
        return await self._run(["draw", drawing], sources, target, owner)

    async def close(self) -> None:
        """End every process; the caller of an interrupted job gets `DecoderBusy`."""
        self._gate.close()
        await asyncio.to_thread(self._end_all)

    def _check_size(self, width: int, height: int) -> None:
        is_possible = 0 < width <= MAX_EDGE_PIXELS and 0 < height <= MAX_EDGE_PIXELS
        if not is_possible or width * height > self._limits.max_pixels:
            raise ValueError(f"{width}x{height} is beyond the decoder's limits")

    async def _run(
        self,
        job: Sequence[str | int | Mapping[str, object]],
        sources: Sequence[BinaryIO],
        target: BinaryIO,
        owner: Hashable = None,
    ) -> ImageFacts:
        try:
            slot = await self._gate.enter(owner)
        except Unavailable:
            raise DecoderBusy("No decoder process becomes free in time.") from None
        future = self._submit(json.dumps(job).encode() + b"\n", sources, target, slot)
        facts = await asyncio.wrap_future(future)
        target.seek(0)
        return facts

    def _submit(
        self, job: bytes, sources: Sequence[BinaryIO], target: BinaryIO, slot: GateSlot
    ) -> "Future[ImageFacts]":
        """Hand the job to a thread, which returns process and descriptors when it is done.

        A cancelled caller does not wait for that.
        """
        loop = asyncio.get_running_loop()
        process = self._idle.pop()
        descriptors: list[int] = []

        def give_back(_: object) -> None:
            for descriptor in descriptors:
                os.close(descriptor)
            self._idle.append(process)
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(slot.leave)

        with ExitStack() as undo:
            undo.callback(give_back, None)
            for source in sources:
                if source.writable():
                    source.flush()
                descriptors.append(os.dup(source.fileno()))
            target.seek(0)
            target.truncate()
            descriptors.append(os.dup(target.fileno()))
            future = self._threads.submit(process.run, job, descriptors)
            undo.pop_all()
        future.add_done_callback(give_back)
        return future

    def _end_all(self) -> None:
        for process in self._processes:
            process.stop()
        self._threads.shutdown()
        for process in self._processes:
            process.end()


class _Process:
    """A decoder process, restarted when needed, and its socket; used by one thread at a time."""

    def __init__(self, limits: DecoderLimits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._is_stopped = False
        self._starting = threading.Lock()

    def run(self, job: bytes, descriptors: list[int]) -> ImageFacts:
        """Do one job; a process that does not answer is killed."""
        connection = self._send(job, descriptors)
        try:
            answer = json.loads(_receive_line(connection, self._limits.job_seconds))
            if "errno" in answer:
                raise DecoderFailed(f"The decoder process failed: {os.strerror(answer['errno'])}.")
            if "problem" in answer:
                raise UnusableImage(ImageProblem(answer["problem"]))
            return _read_facts(answer["image"], os.fstat(descriptors[-1]).st_size)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            # Too slow, killed by a limit, crashed, or compromised: do not reuse the process.
            self.end()
            if self._is_stopped:
                raise DecoderBusy("The decoder is closed.") from None
            raise UnusableImage(ImageProblem.TOO_EXPENSIVE) from None

    def stop(self) -> None:
        """Kill the process, from any thread, and prevent another start."""
        with self._starting:
            self._is_stopped = True
            process = self._process
            if process:
                process.kill()

    def end(self) -> None:
        """Kill and reap the process, if there is one."""
        if self._process:
            self._process.kill()
            self._process.wait()
        if self._connection:
            self._connection.close()
        self._process = self._connection = None

    def _send(self, job: bytes, descriptors: list[int]) -> socket.socket:
        """Send the job, starting a process if needed; return its socket."""
        if self._process and self._process.poll() is None and self._connection:
            with suppress(OSError):  # it died while it was idle
                self._connection.settimeout(self._limits.job_seconds)
                socket.send_fds(self._connection, [job], descriptors)
                return self._connection
        self.end()
        try:
            connection = self._start()
            _receive_line(connection, START_SECONDS)
            socket.send_fds(connection, [job], descriptors)
        except OSError as error:
            self.end()
            if self._is_stopped:
                raise DecoderBusy("The decoder is closed.") from None
            raise DecoderFailed("A decoder process does not start.") from error
        return connection

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        numbers = (theirs.fileno(), self._limits.max_pixels, self._limits.memory_bytes)
        with self._starting, theirs:
            self._connection = ours
            if self._is_stopped:
                raise DecoderBusy("The decoder is closed.")
            self._process = subprocess.Popen(  # noqa: S603 - this program, with numbers
                [sys.executable, "-I", "-m", self._limits.program, *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={},
                close_fds=True,
                pass_fds=[theirs.fileno()],
            )
        return ours


def _receive_line(connection: socket.socket, seconds: float) -> bytes:
    """Receive one line within the time limit.

    Raises:
        OSError: no line came, or it is longer than any valid answer.
    """
    deadline = time.monotonic() + seconds
    received = b""
    while not received.endswith(b"\n"):
        remaining_seconds = deadline - time.monotonic()
        if remaining_seconds <= 0:
            raise TimeoutError
        connection.settimeout(remaining_seconds)
        part = connection.recv(MAX_ANSWER_BYTES)
        if not part or len(received) > MAX_ANSWER_BYTES:
            raise ConnectionResetError
        received += part
    return received


def _read_facts(facts: dict[str, object], size_bytes: int) -> ImageFacts:
    """Validate the types of a process's answer; a compromised one may still lie in its values.

    Raises:
        ValueError, LookupError: the answer is malformed.
    """
    media_type, width, height = facts["media_type"], facts["width"], facts["height"]
    has_alpha, is_transparent = facts["has_alpha"], facts["is_transparent"]
    if not isinstance(media_type, str) or media_type not in MEDIA_TYPES:
        raise ValueError("media_type")
    if not isinstance(width, int) or not isinstance(height, int):
        raise ValueError("size")  # noqa: TRY004 - one kind of defect
    if not isinstance(has_alpha, bool) or not isinstance(is_transparent, bool):
        raise ValueError("alpha")  # noqa: TRY004
    return ImageFacts(media_type, width, height, size_bytes, has_alpha, is_transparent)
