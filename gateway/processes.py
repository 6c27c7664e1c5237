"""The first act of every process of the gateway: forbid core dumps of itself."""

import ctypes
import resource
import sys
from contextlib import suppress

PR_SET_DUMPABLE = 4
"""linux/prctl.h"""


def forbid_core_dumps() -> None:
    """Let no crash write this process' memory, which holds keys, to a file.

    The limit passes on to every process started from here. On Linux the process is also not
    dumpable: handlers that take dumps through a pipe get none, and debuggers of the same user do
    not attach.
    """
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
