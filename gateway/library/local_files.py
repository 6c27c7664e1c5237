"""Writes files of a local image store: one thread hop a file.

The store's client makes four hops through its own runtime, which costs twice the CPU time
(docs/performance.md, "Profile").
"""

import asyncio
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path

WRITERS = 32
"""Threads that write. A disk that hangs blocks one of them for each file."""
FOLDER_ATTEMPTS = 5
_UNFINISHED = re.compile(r"img_[0-9a-z_]+(\.[a-z]+){1,3}#[0-9]+", re.ASCII)


class LocalFiles:
    """Writes files below `folder`; a file appears under its name only when it is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="image-writer")

    async def write(self, path: str, content: bytes) -> None:
        """Write `content` to `path`, replacing an earlier file; after a cancellation too.

        Raises:
            OSError: the disk did not accept it.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, _write, self.folder / path, content)

    async def delete_unfinished(self, folder: str, before: datetime) -> int:
        """Remove partial files of killed processes; return the number."""
        return await asyncio.to_thread(_unlink_unfinished, self.folder / folder, before)


def _write(target: Path, content: bytes) -> None:
    unfinished = Path(f"{target}#{time.time_ns()}")
    try:
        _create(unfinished, content)
        unfinished.replace(target)
    except OSError:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def _create(path: Path, content: bytes) -> None:
    """Create the file, and its folder. A folder may vanish again: empty ones are removed."""
    for _ in range(FOLDER_ATTEMPTS):
        with suppress(FileNotFoundError), path.open("xb") as file:
            file.write(content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
    raise FileNotFoundError(path)


def _unlink_unfinished(folder: Path, before: datetime) -> int:
    count = 0
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names if _UNFINISHED.fullmatch(name)):
            with suppress(FileNotFoundError):  # its writer has finished it meanwhile
                if path.stat().st_mtime < before.timestamp():
                    path.unlink()
                    count += 1
    return count
