"""OpenAI's Images API through its own SDK: one shared client, one key per call, no retries."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import date
from tempfile import TemporaryFile
from typing import BinaryIO, cast

import httpx2
import openai
import pybase64
import structlog
from openai import AsyncOpenAI, AsyncStream, DefaultAioHttpClient

from gateway.domain import (
    ImageRequest,
    InputImage,
    Operation,
    PartialSink,
    ProviderAnswer,
    SecretText,
)
from gateway.providers.downloads import DownloadRefused, Downloads
from gateway.providers.openai_answers import (
    broken_stream,
    interrupted,
    read_answer,
    read_body,
    read_completed,
    read_partial,
    read_shutdown_dates,
    refused,
    unreadable,
)

PATHS = {
    Operation.GENERATION: "/images/generations",
    Operation.EDIT: "/images/edits",
    Operation.VARIATION: "/images/variations",
}
log = structlog.get_logger(__name__)
MODELS_PATH = "/models"
MODELS_TIMEOUT_SECONDS = 30.0
KEEPALIVE_SECONDS = 30.0
POOL_TIMEOUT_SECONDS = 10.0


class OpenAIImages:
    """The provider `openai`."""

    def __init__(
        self,
        *,
        base_url: str,
        connect_timeout_seconds: float,
        read_timeout_seconds: float | None,
        max_connections: int,
        downloads: Downloads,
    ) -> None:
        self._downloads = downloads
        self._connect_timeout_seconds = connect_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds
        self._client = AsyncOpenAI(
            api_key="one is given with each call",
            base_url=base_url,
            max_retries=0,
            http_client=DefaultAioHttpClient(
                limits=httpx2.Limits(
                    max_connections=max_connections, keepalive_expiry=KEEPALIVE_SECONDS
                ),
                # A redirect would carry the prompt, and could buy twice.
                follow_redirects=False,
            ),
        )
        # The SDK reads these from the environment; they would be sent with tenants' keys.
        self._client.organization = None
        self._client.project = None

    async def close(self) -> None:
        """Close connections."""
        await self._client.close()
        await self._downloads.close()

    async def generate(
        self,
        request: ImageRequest,
        credential: SecretText,
        partials: PartialSink | None = None,
    ) -> ProviderAnswer:
        """Buy the images of `request`.

        Raises:
            ProviderFailure: anything but images.
        """
        try:
            if request.stream:
                return await self._stream(request, credential, partials)
            # The SDK's own way to call a path: the typed method would only check once more what
            # the catalogue has checked, and parse megabytes of base64 into objects.
            response = await self._client.post(
                PATHS[request.operation],
                cast_to=httpx2.Response,
                body=_parameters(request),
                files=_files(request),
                options=self._options(request, credential),
            )
        except openai.APIStatusError as error:
            raise refused(error) from error
        except openai.APIConnectionError as error:
            raise interrupted(error) from error
        body = read_body(response.content)
        items = cast("list[dict[str, object]]", body["data"])
        images = await asyncio.gather(*(self._image(item) for item in items))
        return read_answer(body, images, request)

    async def _image(self, item: Mapping[str, object]) -> object:
        """The image as base64; some OpenAI-compatible hosts answer with links alone.

        None where its link cannot be used: the answer as a whole then holds no readable image.
        """
        url = item.get("url")
        if item.get("b64_json") is not None or not isinstance(url, str):
            return item.get("b64_json")
        with TemporaryFile() as file:
            try:
                await self._downloads.fetch(url, file)
            except DownloadRefused as refusal:
                log.warning("provider_link_refused", reason=refusal.reason)
                return None
            return pybase64.b64encode(file.read()).decode()

    async def shutdown_dates(self, credential: SecretText) -> Mapping[str, date]:
        """When models end, as `GET /v1/models` announces it.

        Raises:
            ProviderFailure: no answer, or none that can be read.
        """
        try:
            response = await self._client.get(
                MODELS_PATH,
                cast_to=httpx2.Response,
                options={
                    "headers": {"Authorization": f"Bearer {credential.reveal()}"},
                    "timeout": MODELS_TIMEOUT_SECONDS,
                },
            )
        except openai.APIStatusError as error:
            raise refused(error) from error
        except openai.APIConnectionError as error:
            raise interrupted(error) from error
        return read_shutdown_dates(response.content)

    async def _stream(
        self, request: ImageRequest, credential: SecretText, partials: PartialSink | None
    ) -> ProviderAnswer:
        """Read events until the last one. A stream that ends without it may have been paid."""
        stream = await self._client.post(
            PATHS[request.operation],
            cast_to=object,
            body=_parameters(request) | {"stream": True, "partial_images": request.partial_images},
            files=_files(request),
            options=self._options(request, credential),
            stream=True,
            stream_cls=AsyncStream[object],
        )
        async with stream:
            try:
                async for event in stream:
                    if not isinstance(event, Mapping):
                        continue
                    kind = str(event.get("type"))
                    if kind.endswith(".completed"):
                        return read_completed(event, request)
                    partial = read_partial(event, request)
                    if partials is not None and partial is not None:
                        partials(partial)
            except openai.APIConnectionError:
                raise
            except openai.APIError as error:
                raise broken_stream(error) from error
            except ValueError as error:
                raise unreadable() from error
        raise unreadable()

    def _options(self, request: ImageRequest, credential: SecretText) -> openai.RequestOptions:
        read_timeout = self._read_timeout_seconds or request.model.read_timeout_seconds
        headers = {"Authorization": f"Bearer {credential.reveal()}"}
        if request.operation is not Operation.GENERATION:
            headers["Content-Type"] = "multipart/form-data"
        return {
            "headers": headers,
            "timeout": httpx2.Timeout(
                connect=self._connect_timeout_seconds,
                read=read_timeout,
                write=read_timeout,
                pool=POOL_TIMEOUT_SECONDS,
            ),
        }


def _parameters(request: ImageRequest) -> dict[str, str | int | bool]:
    """The fields that the client gave, and no others: the vendor's defaults stay the vendor's.

    Models of DALL·E's time, which only an operator's own host still has, are asked for bytes.
    """
    given: dict[str, str | int | bool | None] = {
        "model": request.model.id,
        "prompt": request.prompt or None,
        "n": request.n,
        "size": request.size,
        "quality": request.quality,
        "background": request.background,
        "output_format": request.output_format,
        "output_compression": request.output_compression,
        "moderation": request.moderation,
        "complexity": request.complexity,
        "input_fidelity": request.input_fidelity,
        "style": request.style,
        "response_format": "b64_json" if request.model.continuity.bare_answer else None,
        "safety_identifier": request.safety_identifier,
        "user": request.user,
    }
    return {name: value for name, value in given.items() if value is not None}


def _files(request: ImageRequest) -> Sequence[tuple[str, tuple[str, BinaryIO, str]]] | None:
    """The pictures of an edit as multipart files, each with its true content type.

    OpenAI refuses what is declared as `application/octet-stream`; files are read as they are sent.
    """
    if request.operation is Operation.GENERATION:
        return None
    name = "image" if len(request.inputs) == 1 else "image[]"
    named = [(name, image) for image in request.inputs]
    named += [
        (name, image)
        for name, image in (("mask", request.mask), ("markup", request.markup))
        if image is not None
    ]
    return [(name, _file(name, number, image)) for number, (name, image) in enumerate(named)]


def _file(name: str, number: int, image: InputImage) -> tuple[str, BinaryIO, str]:
    extension = image.media_type.partition("/")[2]
    return (f"{name.rstrip('[]')}-{number}.{extension}", image.file, image.media_type)
