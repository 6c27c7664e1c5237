"""Reads image files from the store, or from the spool until the store has them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from gateway import telemetry
from gateway.errors import NotFound, StorageFailed
from gateway.library.spool import Spool
from gateway.library.storage import (
    STREAM_CHUNK_BYTES,
    UNANSWERED,
    ImageStore,
    OpenedFile,
    StoredObject,
    image_id_of,
    image_of,
)
from gateway.library.store_health import StoreHealth
from gateway.vault.sealing import SealBroken

T = TypeVar("T")


class ImageFiles(ImageStore):
    """An image store that falls back to the spool for missing or unreadable files.

    If the store does not have the file and the spool cannot be read, methods raise
    `DatabaseUnavailable` too.
    """

    def __init__(self, store: ImageStore, spool: Spool, health: StoreHealth) -> None:
        super().__init__(store.objects, store.folder)
        self._spool = spool
        self._health = health

    async def get(self, path: str) -> bytes:
        """The bytes at `path`."""
        return await self._either(path, lambda: ImageStore.get(self, path), self._spooled)

    async def find(self, path: str) -> StoredObject:
        """Return the metadata of the file at `path`."""
        return await self._either(path, lambda: ImageStore.find(self, path), self._spool.find)

    async def read(self, path: str, span: tuple[int, int] | None = None) -> OpenedFile:
        """Open the file at `path`: all of it, or the bytes from `span[0]` up to `span[1]`."""

        async def download(path: str) -> OpenedFile:
            content = await self._spooled(path)
            start, stop = span or (0, len(content))
            return OpenedFile(len(content), _chunks(content[start:stop]))

        return await self._either(path, lambda: ImageStore.read(self, path, span), download)

    async def _spooled(self, path: str) -> bytes:
        try:
            return await self._spool.read(path)
        except SealBroken as error:
            telemetry.alarm(
                "spooled_image_unreadable", id=image_id_of(path), error=type(error).__name__
            )
            raise StorageFailed(UNANSWERED) from error

    async def _either(
        self,
        path: str,
        stored: Callable[[], Awaitable[T]],
        spooled: Callable[[str], Awaitable[T]],
    ) -> T:
        if image_of(path) != path:  # only images are spooled, never thumbnails
            return await stored()
        if not self._health.is_failing:
            return await _first_of(stored, lambda: spooled(path))
        try:
            return await spooled(path)
        except NotFound:
            return await stored()


async def _first_of(stored: Callable[[], Awaitable[T]], spooled: Callable[[], Awaitable[T]]) -> T:
    try:
        return await stored()
    except StorageFailed as failed:
        try:
            return await spooled()
        except NotFound:
            raise failed from None
    except NotFound:
        try:
            return await spooled()
        except NotFound:
            # The spool may have been drained into the store between the two reads.
            return await stored()


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), STREAM_CHUNK_BYTES):
        yield content[start : start + STREAM_CHUNK_BYTES]
