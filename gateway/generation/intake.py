"""Pictures on their way in: fetched, checked, made a request's own, unless it was sent before."""

from collections.abc import Sequence
from contextlib import ExitStack

from gateway.domain import Caller, ImageRequest
from gateway.generation.image_references import InputImageFetcher, InputImageReference
from gateway.generation.input_images import Upload, add_inputs
from gateway.generation.pipeline import Pipeline
from gateway.media.decoder import Decoder


class Intake:
    """Brings pictures to requests."""

    def __init__(self, pipeline: Pipeline, fetcher: InputImageFetcher, decoder: Decoder) -> None:
        self._pipeline = pipeline
        self._fetcher = fetcher
        self._decoder = decoder

    async def with_pictures(
        self,
        caller: Caller,
        request: ImageRequest,
        pictures: Sequence[Upload | InputImageReference],
        files: ExitStack,
    ) -> ImageRequest:
        """The request with its pictures; it owns their files.

        What its idempotency key stands for is answered without them: a link may have expired since,
        or its picture have been deleted.

        Raises:
            GatewayError: what `InputImageFetcher.fetch` and `add_inputs` raise.
        """
        if await self._pipeline.is_claimed(caller, request):
            return request
        uploads = await self._fetcher.fetch(caller, request, pictures, files)
        return await add_inputs(request, uploads, self._decoder, caller.tenant_id)
