"""The command `gateway`: thin commands over the core."""

import sys
from importlib import import_module

__all__ = ["main"]


def main() -> None:
    """Run the command line.

    Desktop clients start `mcp-stdio` over and over: it does not wait for the imports of the others.
    """
    is_bridge = sys.argv[1:2] == ["mcp-stdio"]
    import_module("gateway.cli.mcp" if is_bridge else "gateway.cli.app").main()
