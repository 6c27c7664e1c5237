"""Background work that goes on for the life of the process, also after an unexpected error."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

RETRY_SECONDS = 1.0
log = logging.getLogger(__name__)
"""The standard library's: commands that read start faster without structlog."""


async def repeat(work: str, turn: Callable[[], Awaitable[None]]) -> NoReturn:
    """Do `turn` again and again until the task is cancelled.

    A turn handles the errors that it expects. Another one is a defect, of a driver perhaps: it is
    logged under the name `work`, since the task would otherwise end silently.
    """
    while True:
        try:
            await turn()
        except Exception:  # top: the next turn must still be done
            log.exception("background_work_failed: %s", work)
            await asyncio.sleep(RETRY_SECONDS)
