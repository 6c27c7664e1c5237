"""Thumbnails: made from the stored image on first request, and stored beside it."""

import asyncio

from gateway.errors import NotFound, Unavailable
from gateway.library.storage import ImageStore, tenant_of, thumbnail_path
from gateway.load.gate import Gate, GateLimits
from gateway.media.decoder import Decoder, DecoderBusy, DecoderFailed, UnusableImage
from gateway.media.temporary_files import new_spool

MAX_EDGE_PIXELS = 512
LIMITS = GateLimits(most=1, most_of_one=1, max_waiting=128, wait_seconds=10.0)
"""Links need no key: one tenant may fill at most half of the queue, and tenants take turns."""


class Thumbnails:
    """Makes each thumbnail once, even for concurrent requests."""

    def __init__(self, store: ImageStore, decoder: Decoder) -> None:
        self._store = store
        self._decoder = decoder
        self._making: dict[str, asyncio.Task[None]] = {}
        self._gate = Gate("thumbnails", LIMITS)

    async def ensure(self, path: str) -> None:
        """Make the thumbnail of the image at `path` unless it exists.

        Raises:
            NotFound: there is no such image, or no thumbnail can be made of it.
            StorageFailed: the store does not respond.
            Unavailable: too many thumbnails, of all tenants or of this one, are being made.
        """
        try:
            await self._store.find(thumbnail_path(path))
        except NotFound:
            await self._make_once(path)

    async def _make_once(self, path: str) -> None:
        making = self._making.get(path)
        if making is None:
            making = asyncio.create_task(self._make(path), name="thumbnail")
            self._making[path] = making
            making.add_done_callback(lambda task: self._made(path, task))
        # Shielded: if the first request is cancelled, the others still wait for the result.
        await asyncio.shield(making)

    async def close(self) -> None:
        """Cancel the thumbnails being made."""
        making = list(self._making.values())
        for task in making:
            task.cancel()
        if making:
            await asyncio.wait(making)

    def _made(self, path: str, task: asyncio.Task[None]) -> None:
        del self._making[path]
        # Retrieve the exception, or asyncio logs it as never retrieved if no request waits.
        if not task.cancelled():
            task.exception()

    async def _make(self, path: str) -> None:
        async with self._gate.slot(tenant_of(path)):
            content = await self._shrink(path)
        await self._store.put(thumbnail_path(path), content)
        try:
            await self._store.find(path)
        except NotFound:
            # The image was deleted meanwhile, so its thumbnail must not remain.
            await self._store.delete(thumbnail_path(path))
            raise

    async def _shrink(self, path: str) -> bytes:
        original = await self._store.read(path)
        with new_spool() as source, new_spool() as target:
            async for chunk in original.chunks:
                await asyncio.to_thread(source.write, chunk)
            source.flush()
            try:
                await self._decoder.thumbnail(source, target, max_edge=MAX_EDGE_PIXELS)
            except UnusableImage as error:
                raise NotFound(
                    "No thumbnail can be made of this image.", code="image_not_found"
                ) from error
            except (DecoderBusy, DecoderFailed) as error:
                raise Unavailable(
                    "Thumbnails cannot be made right now. Try again.", retry_after_seconds=1
                ) from error
            return target.read()
