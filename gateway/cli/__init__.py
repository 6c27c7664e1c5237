"""The command `gateway`: thin commands over the core."""

from gateway.cli.app import main

__all__ = ["main"]
