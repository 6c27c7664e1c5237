"""Streams: OpenAI's server-sent events, passed on as they come, kept alive in between.

Until the first event is there, a refusal is an ordinary HTTP error. The call belongs to the
process: a client that leaves early changes nothing about its settlement.
"""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse

from gateway.domain import Admitted, Caller, Generation, ImageRequest, Operation, Standing
from gateway.errors import GatewayError, envelope
from gateway.generation.pipeline import Pipeline
from gateway.money import format_usd
from gateway.provider_answers import PartialImage
from gateway.request_record import current, note_error
from gateway.rest.answers import REPLAYED, limit_headers, model_headers, render_usage

KEEP_ALIVE = b": keep-alive\n\n"
PREFIXES = {Operation.GENERATION: "image_generation", Operation.EDIT: "image_edit"}
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def stream_generation(
    pipeline: Pipeline,
    caller: Caller,
    request: ImageRequest,
    *,
    keepalive_seconds: float,
) -> Response:
    """Answer with a stream as soon as there is something to send.

    Raises:
        GatewayError: refused before anything was sent.
    """
    stream = _Stream(pipeline, caller, request, keepalive_seconds)
    first = await stream.begin()
    return StreamingResponse(
        stream.events(first),
        media_type="text/event-stream",
        headers=HEADERS
        | model_headers(request, *stream.served_by)
        | limit_headers(stream.standings)
        | (REPLAYED if stream.replayed is not None else {}),
    )


class _Stream:
    """One stream: the task that waits for the generation, and the images on their way."""

    def __init__(
        self,
        pipeline: Pipeline,
        caller: Caller,
        request: ImageRequest,
        keepalive_seconds: float,
    ) -> None:
        self._prefix = PREFIXES[request.operation]
        self._keepalive_seconds = keepalive_seconds
        self._arrived: asyncio.Queue[PartialImage] = asyncio.Queue()
        self._admitted = Admitted(())
        self._serving = partial(pipeline.serve, caller, request)
        self._waiting = asyncio.create_task(pipeline.generate(caller, request, self._take))

    async def begin(self) -> bytes:
        """The first thing to send; an error that comes before it is raised."""
        begun = False
        try:
            first = await self._next()
            begun = True
        finally:
            if not begun:
                self._waiting.cancel()
        return first

    @property
    def standings(self) -> tuple[Standing, ...]:
        """The caller's own limits; none before its admission, or of a repeated request."""
        return self._admitted.standings

    @property
    def replayed(self) -> Generation | None:
        """The generation of an earlier request that this one repeats: complete from the start."""
        generation = self._waiting.result() if self._waiting.done() else None
        return generation if generation is not None and generation.replayed else None

    @property
    def served_by(self) -> tuple[str, str]:
        """The model that serves the request, or has served it, and its provider.

        A fallback that follows a slow failure is named by the last event alone.
        """
        if self._waiting.done():
            generation = self._waiting.result()
            return generation.served.model.id, generation.provider
        record = current()
        if record.served_model is not None and record.provider is not None:
            return record.served_model, record.provider
        model = self._serving().model
        return model.id, model.provider

    async def events(self, first: bytes) -> AsyncIterator[bytes]:
        """Everything from the first thing on; the last one is the image or an error."""
        try:
            yield first
            while not (self._waiting.done() and self._arrived.empty()):
                yield await self._next()
            yield self._completed(await self._waiting)
        except GatewayError as error:
            yield _error(error)
        finally:
            self._waiting.cancel()

    def _take(self, event: Admitted | PartialImage) -> None:
        if isinstance(event, Admitted):
            self._admitted = event
        else:
            self._arrived.put_nowait(event)

    async def _next(self) -> bytes:
        """The next partial image, or a sign of life; nothing once the generation is there."""
        arriving = asyncio.create_task(self._arrived.get())
        try:
            done, _ = await asyncio.wait(
                {arriving, self._waiting},
                timeout=self._keepalive_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            arriving.cancel()  # also where the client has left; it does nothing to what is done
        if arriving in done:
            return self._partial(arriving.result())
        if self._waiting in done:
            await self._waiting
            return b""
        return KEEP_ALIVE

    def _partial(self, image: PartialImage) -> bytes:
        return _event(
            f"{self._prefix}.partial_image",
            b64_json=image.base64,
            background=image.background,
            created_at=image.created,
            output_format=image.output_format,
            partial_image_index=image.index,
            quality=image.quality,
            size=image.size,
        )

    def _completed(self, generation: Generation) -> bytes:
        """The final image; the headers having gone, what it cost stands beside it."""
        answer, image = generation.answer, generation.images[0]
        by_url = generation.request.response_format == "url"
        return _event(
            f"{self._prefix}.completed",
            **({"url": image.url} if by_url else {"b64_json": image.base64}),
            background=answer.background,
            created_at=answer.created,
            output_format=answer.output_format,
            quality=answer.quality,
            size=answer.size,
            **({"seed": answer.seeds[0]} if answer.seeds else {}),
            usage=None if answer.usage is None else render_usage(answer.usage),
            gateway={
                "generation_id": str(generation.id),
                "cost_usd": format_usd(generation.cost_nano),
                "cost_status": generation.cost_status,
                "served_model": generation.served.model.id,
                "provider": generation.provider,
            },
        )


def _event(kind: str, /, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def _error(error: GatewayError) -> bytes:
    """The last event of a failed stream. Headers being gone, it names the generation itself."""
    note_error(error)
    generation_id = current().generation_id
    gateway = {} if generation_id is None else {"gateway": {"generation_id": str(generation_id)}}
    return _event("error", **envelope(error), **gateway)
