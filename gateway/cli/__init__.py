"""The command line `gateway`: thin commands over the core.

It may import every package; nothing imports it, except the names given to worker processes here.
"""

import gc
from importlib import import_module

from gateway.processes import forbid_core_dumps, share_heaps

__all__ = ["main", "worker_app"]


def main() -> None:
    """Run the command line."""
    forbid_core_dumps()
    share_heaps()
    # Imported objects stay alive; `load` turns the collection on again.
    gc.disable()
    import_module("gateway.cli.app").main()


def worker_app() -> object:
    """Build the application in a worker process, which starts here."""
    forbid_core_dumps()
    share_heaps()
    # Imported objects stay alive: collecting garbage during imports took a third of the time.
    gc.disable()
    module = import_module("gateway.main")
    gc.freeze()
    gc.enable()
    return module.worker_app()
