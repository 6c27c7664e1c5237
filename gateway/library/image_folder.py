"""The folder of local image files: made at start alone, and open to its owner alone."""

import asyncio
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path, PurePosixPath

from gateway.file_systems import remote_kind

OWNER_ONLY = 0o700
QUICK_BYTES = 256 * 1024
"""A larger file takes longer than handing it to a thread."""
SLOW_SECONDS = 0.005
REST_SECONDS = 10.0
_ROOT = Path("/")


class ImageFolder:
    """A folder that is not made again once it is gone, itself or the mount that it is on.

    Otherwise images would go, readable by others, to where no one looks for them: into the empty
    mount point. A folder that is back is used again.
    """

    def __init__(
        self,
        path: Path,
        *,
        beside: Path | None = None,
        is_mount: Callable[[Path], bool] = Path.is_mount,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the folder if it is missing.

        `beside`: a folder of files to which the event loop writes anyway. On the same disk small
        files are written by the event loop too.

        Raises:
            OSError: it cannot be made.
        """
        path.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY)
        self.path = path
        self._text = str(path)
        self._is_mount = is_mount
        real = path.resolve()
        self._mount = next(one for one in (real, *real.parents) if one == _ROOT or is_mount(one))
        # The look-up of a folder on this machine's own disk does not block; a file server may.
        self._is_remote = remote_kind(path) is not None
        self._known = _identity(self._text)
        self._is_quick = (
            not self._is_remote and beside is not None and _are_on_one_disk(path, beside)
        )
        self._rests_until = -math.inf
        self._clock = clock
        self._numbers = count(os.getpid())

    async def expect(self) -> None:
        """Expect the folder to exist, on the mount on which it was at start.

        Raises:
            FileNotFoundError: it is gone.
        """
        if not self._is_known():
            await asyncio.to_thread(self._find)

    async def prepare(self, name: str) -> None:
        """Make the folders of the file `name`, which is about to be written.

        Raises:
            OSError: they cannot be made, or the folder of all images is gone.
        """
        # Usually two system calls: a thread for each image would cost a third of the throughput.
        if not self._is_prepared(name):
            await asyncio.to_thread(self._make, name)

    def write_quickly(self, name: str, content: bytes) -> bool:
        """Write a small file now, complete or not at all; return False if a thread should do it.

        A thread for each file takes a third of the throughput, mostly by contention for the
        interpreter's lock. After one slow write threads do it for a while: a busy disk must not
        delay other requests again and again.

        Raises:
            OSError: it cannot be written.
        """
        began = self._clock()
        if not self._is_quick or len(content) > QUICK_BYTES or began < self._rests_until:
            return False
        path = f"{self._text}/{name}"
        unfinished = Path(f"{path}#{next(self._numbers)}")
        try:
            with unfinished.open("xb") as file:
                file.write(content)
            unfinished.replace(path)
        except FileExistsError:
            return False  # left by a killed worker of the same process id
        except OSError:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
        finally:
            ended = self._clock()
            if ended - began > SLOW_SECONDS:
                self._rests_until = ended + REST_SECONDS
        return True

    def _is_prepared(self, name: str) -> bool:
        folder = name.rpartition("/")[0]
        return self._is_known() and os.path.isdir(f"{self._text}/{folder}")  # noqa: PTH112 - as above

    def _is_known(self) -> bool:
        """Tell, without waiting for a file server, whether the folder was found before."""
        try:
            return not self._is_remote and _identity(self._text) == self._known
        except OSError:
            return False

    def _find(self) -> None:
        is_mounted = self._mount == _ROOT or self._is_mount(self._mount)
        if not (is_mounted and self.path.is_dir()):
            raise FileNotFoundError("The folder of images is gone.")
        self._known = _identity(self._text)

    def _make(self, name: str) -> None:
        self._find()
        folder = self.path
        for part in PurePosixPath(name).parts[:-1]:
            folder /= part
            folder.mkdir(mode=OWNER_ONLY, exist_ok=True)


def _are_on_one_disk(path: Path, other: Path) -> bool:
    with suppress(OSError):
        return path.stat().st_dev == other.stat().st_dev
    return False


def _identity(path: str) -> tuple[int, int]:
    """Identify what lies at the path: another mount or another folder differs."""
    found = os.stat(path)  # noqa: PTH116 - a Path takes longer to build than to look up
    return found.st_dev, found.st_ino
