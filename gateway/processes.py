"""Process hardening at start: core dumps are forbidden."""

import ctypes
import resource
import sys
from contextlib import suppress

PR_SET_DUMPABLE = 4
"""linux/prctl.h"""


def forbid_core_dumps() -> None:
    """Prevent a crash from writing this process's memory, which holds keys, to a file.

    Child processes inherit the limit. On Linux the process is also marked non-dumpable: core-dump
    handlers that read a pipe get nothing, and debuggers of the same user cannot attach.
    """
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
