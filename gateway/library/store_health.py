"""The state of the image store, as this process has found it."""

import asyncio
import time
from uuid import uuid4

import structlog

from gateway import telemetry
from gateway.errors import StorageFailed, Unavailable
from gateway.library.storage import ImageStore

FAILURES_IN_ROW = 3
"""One failure may be one file's; so many without a success between them are the store's."""
PROBE_SECONDS = 5.0
"""While the store fails it is tried this often, by requests and by the sweeper."""
PROBE_TIMEOUT_SECONDS = 3.0
PROBE_FOLDER = "image-gateway.probe"
RETRY_AFTER_SECONDS = 10
log = structlog.get_logger(__name__)


class StoreHealth:
    """Counts failed and successful writes, and probes a store that fails."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._failures = 0
        self._probed_at = 0.0
        self._probing = asyncio.Lock()
        self._path = f"{PROBE_FOLDER}/{uuid4()}"
        self.is_spool_full = False

    @property
    def is_failing(self) -> bool:
        """Whether the store is known to be away."""
        return self._failures >= FAILURES_IN_ROW

    def succeeded(self) -> None:
        """Note that the store took something."""
        if self.is_failing:
            log.warning("image_store_is_back")
        self._failures = 0
        telemetry.image_store_failing.set(0)

    def failed(self) -> None:
        """Note that the store refused something, or did not answer in time."""
        self._failures += 1
        self._probed_at = time.monotonic()
        if self._failures == FAILURES_IN_ROW:
            telemetry.image_store_failing.set(1)
            telemetry.alarm("image_store_away")

    async def probe(self) -> bool:
        """Write a small file and remove it; returns whether the store takes files."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                await self._store.put(self._path, b"probe")
                await self._store.delete(self._path)
        except (StorageFailed, TimeoutError):
            self.failed()
            return False
        self.succeeded()
        return True

    async def check(self, *, wants_link: bool) -> None:
        """Refuse what could be bought and not delivered; while the store works, nothing is done.

        Raises:
            Unavailable: the store is away, and a link was asked for or the spool is full.
        """
        if not self.is_failing or not (wants_link or self.is_spool_full):
            return
        if await self._is_back():
            return
        raise Unavailable(
            "The image store does not answer, so no link to an image can be given. Nothing was "
            "bought. Try again later, or ask for the image itself with response_format=b64_json "
            "(in MCP: full_image)."
            if not self.is_spool_full
            else "The image store does not answer, and no more images can be kept until it does. "
            "Nothing was bought. Try again later.",
            code="storage_unavailable",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )

    async def _is_back(self) -> bool:
        """Probe when it is time to; requests that come meanwhile do not wait for the probe."""
        is_due = time.monotonic() - self._probed_at >= PROBE_SECONDS
        if is_due and not self._probing.locked():
            async with self._probing:
                await self.probe()
        return not self.is_failing
