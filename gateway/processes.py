"""Properties of a process from its start on: no core dumps, small heaps."""

import ctypes
import resource
import sys
from contextlib import suppress

PR_SET_DUMPABLE = 4
"""linux/prctl.h"""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""malloc.h of the GNU C library"""
HEAPS = 2
MAPPED_BYTES = 2**20
"""Blocks of this size and larger are mappings of their own, returned to the system when freed."""
KEPT_BYTES = 4 * 2**20
"""Free memory at the end of a heap beyond which it is returned to the system."""


def forbid_core_dumps() -> None:
    """Prevent a crash from writing this process's memory, which holds keys, to a file.

    Child processes inherit the limit. On Linux the process is also marked non-dumpable: core-dump
    handlers that read a pipe get nothing, and debuggers of the same user cannot attach.
    """
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def bound_heaps() -> None:
    """Let the C library return large blocks to the system, and let threads share two heaps.

    By default each thread has its own heap, and glibc raises the size from which blocks are mapped
    to that of the largest mapped block freed so far (at most 32 MiB), so that later large answers
    fragment the heaps: by up to 50 MB (`make bench`). Other C libraries have one heap.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_ARENA_MAX, HEAPS)
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
