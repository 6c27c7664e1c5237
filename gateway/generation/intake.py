"""Input images: fetched, checked and added to their request, unless it was sent before."""

from collections.abc import Sequence
from contextlib import ExitStack

from gateway.domain import Caller, ImageRequest, RepeatedClaim
from gateway.generation.image_references import InputImageFetcher, InputImageReference
from gateway.generation.input_images import Upload, add_inputs
from gateway.generation.pipeline import Pipeline
from gateway.load.gate import leave_current_slot
from gateway.media.decoder import Decoder


class Intake:
    """Adds input images to requests."""

    def __init__(self, pipeline: Pipeline, fetcher: InputImageFetcher, decoder: Decoder) -> None:
        self._pipeline = pipeline
        self._fetcher = fetcher
        self._decoder = decoder

    async def with_images(
        self,
        caller: Caller,
        request: ImageRequest,
        images: Sequence[Upload | InputImageReference],
        files: ExitStack,
    ) -> ImageRequest:
        """Look the request's key up and add its input images; the request owns their files.

        A repeated request gets none: a link may have expired since, or its image been deleted.

        Raises:
            GatewayError: from `Pipeline.look_up`, `InputImageFetcher.fetch` or `add_inputs`.
        """
        # To fetch and check images takes its time; the pipeline takes another slot.
        leave_current_slot()
        request = await self._pipeline.look_up(caller, request)
        if isinstance(request.idempotency, RepeatedClaim):
            return request
        uploads = await self._fetcher.fetch(caller, request, images, files)
        return await add_inputs(request, uploads, self._decoder, caller.tenant_id)
