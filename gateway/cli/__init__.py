"""The command `gateway`: thin commands over the core."""

import gc
from importlib import import_module

__all__ = ["main", "worker_app"]


def main() -> None:
    """Run the command line."""
    import_module("gateway.cli.app").main()


def worker_app() -> object:
    """What each of several workers serves; each is a process that begins here."""
    # What is imported stays: looking for garbage in it meanwhile took a third of the time.
    gc.disable()
    module = import_module("gateway.main")
    gc.freeze()
    gc.enable()
    return module.worker_app()
