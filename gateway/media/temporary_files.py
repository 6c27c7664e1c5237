"""Files without a name: gone when they are closed, and with the process at the latest."""

import tempfile
from typing import BinaryIO


def new_spool() -> BinaryIO:
    """A new one, in the system's temporary directory (`TMPDIR`); whoever asks closes it.

    Raises:
        OSError: there is no room, or no such directory.
    """
    return tempfile.TemporaryFile()
