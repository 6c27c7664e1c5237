"""Bounds on client connections, enforced before a request is parsed: bytes, time and number.

The command line and workers import it to build their server; it imports nothing from the fronts.
"""
