"""Unnamed temporary files, which vanish when they are closed or the process ends."""

import tempfile
from typing import BinaryIO


def new_spool() -> BinaryIO:
    """Open a temporary file in the system's temporary directory; the caller closes it.

    Raises:
        OSError: the disk is full, or the directory (`TMPDIR`) does not exist.
    """
    return tempfile.TemporaryFile()
