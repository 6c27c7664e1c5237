"""The command `gateway`: thin commands over the core."""

import gc
import sys
from importlib import import_module
from types import ModuleType

__all__ = ["main", "worker_app"]


def main() -> None:
    """Run the command line.

    Desktop clients start `mcp-stdio` over and over: it does not wait for the imports of the others.
    """
    is_bridge = sys.argv[1:2] == ["mcp-stdio"]
    _import_to_keep("gateway.cli.mcp" if is_bridge else "gateway.cli.app").main()


def worker_app() -> object:
    """What each of several workers serves; each is a process that begins here."""
    return _import_to_keep("gateway.main").worker_app()


def _import_to_keep(name: str) -> ModuleType:
    """What is imported stays: looking for garbage in it meanwhile took a third of the time."""
    gc.disable()
    module = import_module(name)
    gc.freeze()
    gc.enable()
    return module
