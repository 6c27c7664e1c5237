"""Secrets in variables that a models file names."""

import os


def named_secret(variable: str) -> str | None:
    """Return the value of a variable without surrounding spaces; None if it is not set or empty."""
    return os.environ.get(variable, "").strip() or None
