"""Properties of a process from its start on: no core dumps, few heaps."""

import ctypes
import resource
import sys
from contextlib import suppress

PR_SET_DUMPABLE = 4
"""linux/prctl.h"""
M_ARENA_MAX = -8
"""malloc.h of the GNU C library"""
HEAPS = 2
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def forbid_core_dumps() -> None:
    """Prevent a crash from writing this process's memory, which holds keys, to a file.

    Child processes inherit the limit. On Linux the process is also marked non-dumpable: core-dump
    handlers that read a pipe get nothing, and debuggers of the same user cannot attach.
    """
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def trim_heaps() -> None:
    """Return to the system what is free in the C library's heaps, without the GIL, in milliseconds.

    A worker keeps 30 to 70 MB of large answers otherwise (`make bench`). Other C libraries than
    GNU's do so by themselves, or not at all.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def share_heaps() -> None:
    """Let the threads share two heaps of the C library, which gives each its own otherwise.

    What a large answer occupied is then used again by the next one, from whichever thread: a
    worker takes 3 to 20 MB less (`make bench`). Other C libraries have one heap.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_ARENA_MAX, HEAPS)
