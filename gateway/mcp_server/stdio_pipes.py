"""Bounded lines on stdin and stdout of this process."""

import asyncio
import re
import signal
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import BinaryIO, TypeVar

from mcp.types import RequestId

T = TypeVar("T")
CHUNK_BYTES = 65_536
MARGIN_BYTES = 512
# An id at the very start or end of an object is a member of that object, not of a nested one.
ID_IN_FRONT = re.compile(
    rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*|"method"\s*:\s*"[^"\\]*"\s*,\s*)*'
    rb'"id"\s*:\s*(?:(\d{1,18})|"([^"\\]*)")\s*[,}]'
)
ID_AT_END = re.compile(
    rb',\s*"id"\s*:\s*(?:(\d{1,18})|"([^"\\]*)")\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$'
)


@dataclass(frozen=True, slots=True)
class OverlongLine:
    """A line that was discarded; `request_id` if it could be found."""

    request_id: RequestId | None


class Pipes:
    """stdin and stdout, used from threads that a process may leave behind when it ends.

    They have their own buffers: with those of `sys`, the interpreter hangs at exit if a thread is
    still inside one.
    """

    def __init__(self, *, max_line_bytes: int) -> None:
        self._source = open(0, "rb", buffering=CHUNK_BYTES, closefd=False)  # noqa: SIM115
        self._sink = open(1, "wb", closefd=False)  # noqa: SIM115
        self._max_line_bytes = max_line_bytes

    async def read(self) -> bytes | OverlongLine:
        """Read the next line; empty at the end of input, for any reason."""
        try:
            return await _in_thread(lambda: read_line(self._source, self._max_line_bytes))
        except OSError:
            return b""

    async def write(self, line: bytes) -> None:
        """Write a line completely.

        Raises:
            OSError: the reader has closed the pipe.
        """
        await _in_thread(lambda: self._write(line))

    def _write(self, line: bytes) -> None:
        self._sink.write(line)
        self._sink.flush()


def read_line(source: BinaryIO, max_bytes: int) -> bytes | OverlongLine:
    """Read the next line, or discard one that is too long."""
    line = source.readline(max_bytes + 1)
    if len(line) <= max_bytes:
        return line
    front, end = line[:MARGIN_BYTES], line[-MARGIN_BYTES:]
    while line and not line.endswith(b"\n"):
        line = source.readline(CHUNK_BYTES)
        end = (end + line)[-MARGIN_BYTES:]
    found = ID_IN_FRONT.match(front) or ID_AT_END.search(end)
    if found is None:
        return OverlongLine(None)
    number, text = found.groups()
    return OverlongLine(text.decode(errors="replace") if number is None else int(number))


async def _in_thread(work: Callable[[], T]) -> T:
    """Await blocking work; an abandoned read or write continues in its thread."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except OSError as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(future)


def stop_on_signals() -> asyncio.Event:
    """Build an event that SIGINT and SIGTERM set; a second signal ends the process at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def end(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        with suppress(RuntimeError):  # the loop has already ended
            loop.call_soon_threadsafe(stop.set)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    return stop
