"""Health of the image store, as observed by this process."""

import asyncio
import time
from uuid import uuid4

import structlog

from gateway import telemetry
from gateway.errors import StorageFailed, Unavailable
from gateway.library.storage import ImageStore

FAILURES_IN_ROW = 3
"""A single failure may concern one file; three in a row without a success mean the store fails."""
PROBE_SECONDS = 5.0
"""Interval of the probes of a failing store, by requests and by the sweeper."""
PROBE_TIMEOUT_SECONDS = 3.0
PROBE_FOLDER = "image-gateway.probe"
RETRY_AFTER_SECONDS = 10
log = structlog.get_logger(__name__)


class StoreHealth:
    """Counts failed and successful writes, and probes a failing store."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._failures = 0
        self._probed_at = 0.0
        self._probing = asyncio.Lock()
        self._path = f"{PROBE_FOLDER}/{uuid4()}"
        self.is_spool_full = False

    @property
    def is_failing(self) -> bool:
        """True while the store is known to fail."""
        return self._failures >= FAILURES_IN_ROW

    def succeeded(self) -> None:
        """Record a successful write."""
        if self.is_failing:
            log.warning("image_store_is_back")
        self._failures = 0
        telemetry.image_store_failing.set(0)

    def failed(self) -> None:
        """Record a write that failed or timed out."""
        self._failures += 1
        self._probed_at = time.monotonic()
        if self._failures == FAILURES_IN_ROW:
            _tell_away()

    def found_away(self) -> None:
        """Record that the store is away, without waiting for further failures."""
        self._probed_at = time.monotonic()
        if not self.is_failing:
            self._failures = FAILURES_IN_ROW
            _tell_away()

    async def probe(self) -> bool:
        """Write a small file and delete it; return True if the store accepts files."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                await self._store.put(self._path, b"probe")
                await self._store.delete(self._path)
        except (StorageFailed, TimeoutError):
            self.failed()
            return False
        self.succeeded()
        return True

    async def examine(self) -> None:
        """Probe once, at start: a store that is away is known before anything is bought."""
        if not await self.probe():
            self.found_away()

    async def check(self, *, wants_link: bool) -> None:
        """Refuse a request whose images could not be delivered; does nothing on a healthy store.

        Raises:
            Unavailable: the store fails, and a link was requested or the spool is full.
        """
        if not self.is_failing or not (wants_link or self.is_spool_full):
            return
        if await self._is_back():
            return
        raise store_away(is_spool_full=self.is_spool_full)

    async def _is_back(self) -> bool:
        """Probe if a probe is due; concurrent requests do not wait for it."""
        is_due = time.monotonic() - self._probed_at >= PROBE_SECONDS
        if is_due and not self._probing.locked():
            async with self._probing:
                await self.probe()
        return not self.is_failing


def _tell_away() -> None:
    telemetry.image_store_failing.set(1)
    telemetry.alarm("image_store_away")


def store_away(*, is_spool_full: bool) -> Unavailable:
    """Build the refusal of a request whose images could not be delivered."""
    return Unavailable(
        "The image store does not respond, and no more images can be kept until it does. Nothing "
        "was bought. Try again later."
        if is_spool_full
        else "The image store does not respond, so no link to an image can be given. Nothing was "
        "bought. Try again later, or request the image itself with response_format=b64_json (in "
        "MCP: full_image).",
        code="storage_unavailable",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
