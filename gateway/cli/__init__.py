"""The command `gateway`: thin commands over the core."""

import gc
from importlib import import_module

from gateway.processes import forbid_core_dumps

__all__ = ["main", "worker_app"]


def main() -> None:
    """Run the command line."""
    forbid_core_dumps()
    import_module("gateway.cli.app").main()


def worker_app() -> object:
    """What each of several workers serves; each is a process that begins here."""
    forbid_core_dumps()
    # What is imported stays: looking for garbage in it meanwhile took a third of the time.
    gc.disable()
    module = import_module("gateway.main")
    gc.freeze()
    gc.enable()
    return module.worker_app()
