"""Rules for the gateway's processes: no core dumps, and workers that end with their parent."""

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import wait

PR_SET_DUMPABLE = 4
"""linux/prctl.h"""
SECOND_SIGNAL_SECONDS = 0.5


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


def end_with_parent(*, seconds: float) -> None:
    """Stop this worker when the process that started it ends, even by SIGKILL.

    Without its parent it would serve unsupervised and keep the port. It stops as after SIGTERM:
    paid calls finish. After `seconds` it ends without waiting further.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])  # a pipe that the parent alone holds open
        os.kill(os.getpid(), signal.SIGTERM)
        # The second one skips the delay for balancers: the parent has already stopped answering.
        time.sleep(SECOND_SIGNAL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(seconds)
        os._exit(128 + signal.SIGTERM)

    # A thread, because the event loop may hang just then.
    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
