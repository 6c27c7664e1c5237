"""Progress notifications and partial images, which keep clients from timing out."""

import asyncio
import base64
import time
from collections.abc import Awaitable
from typing import Any

from mcp.types import ProgressNotification, ProgressNotificationParams

from gateway.domain import Admitted, Generation
from gateway.mcp_server.calls import Context
from gateway.media.decoder import Decoder
from gateway.media.previews import make_preview
from gateway.provider_answers import PartialImage

INTERVAL_SECONDS = 2.0
PREVIEW_KEY = "image-gateway/preview"
"""The key in a notification's `_meta` for a partial image: a data: URL of a small WebP."""


class Progress:
    """Progress of one call, reported to the client that asked for it."""

    def __init__(self, context: Context, decoder: Decoder) -> None:
        self._context = context
        self._decoder = decoder
        self._token = (context.meta or {}).get("progress_token")
        self._started = time.monotonic()
        self._partials: asyncio.Queue[PartialImage] = asyncio.Queue()

    def show(self, event: Admitted | PartialImage) -> None:
        """Take an event; a partial image is reported with the next notification."""
        if isinstance(event, PartialImage):
            self._partials.put_nowait(event)

    async def during(self, work: Awaitable[Generation]) -> Generation:
        """Wait for the images and report progress; cancelling the wait cancels no paid call."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await self._report_next(task)
            return await task
        finally:
            task.cancel()

    async def _report_next(self, task: "asyncio.Future[Generation]") -> None:
        arriving = asyncio.create_task(self._partials.get())
        try:
            waiting: list[asyncio.Future[Any]] = [task, arriving]
            await asyncio.wait(
                waiting, timeout=INTERVAL_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            arriving.cancel()  # no effect on a finished task
        if arriving.done() and not arriving.cancelled():
            await self._report_partial(arriving.result())
        elif not task.done():
            await self._context.session.report_progress(
                self._elapsed(), None, "The model is working"
            )

    async def _report_partial(self, image: PartialImage) -> None:
        if self._token is None:
            return
        preview = await make_preview(self._decoder, image.base64)
        encoded = "" if preview is None else base64.b64encode(preview).decode()
        shown = {PREVIEW_KEY: f"data:image/webp;base64,{encoded}"} if encoded else None
        await self._context.session.send_notification(
            ProgressNotification(
                params=ProgressNotificationParams(
                    progress_token=self._token,
                    progress=self._elapsed(),
                    message=f"Partial image {image.index + 1} has arrived",
                    _meta=shown,
                )
            ),
            related_request_id=self._context.request_id,
        )

    def _elapsed(self) -> float:
        """Seconds so far: the protocol requires the progress value to grow with each report."""
        return round(time.monotonic() - self._started, 3)
