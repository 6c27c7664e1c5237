"""Stop workers that outlive their parent."""

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import wait

SECOND_SIGNAL_SECONDS = 0.5


def end_with_parent(*, seconds: float) -> None:
    """Stop this worker when its parent process ends, even by SIGKILL.

    Without its parent it would serve unsupervised and keep the port. It stops as on SIGTERM:
    paid calls finish. After `seconds` it ends without waiting further.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])  # a pipe whose other end only the parent holds open
        os.kill(os.getpid(), signal.SIGTERM)
        # The second one skips the delay for balancers: the parent has already stopped answering.
        time.sleep(SECOND_SIGNAL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(seconds)
        os._exit(128 + signal.SIGTERM)

    # A thread, because the event loop may be blocked at that moment.
    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
