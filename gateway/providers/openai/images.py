"""Client of OpenAI's Images API: the vendor's SDK over the gateway's own connections, one key per
call, no retries (docs/decisions/0044).

Of the SDK a call uses what it does without interpreting: requests, forms, streams and errors. The
typed methods would check again what the catalogue has checked, and turn megabytes into objects.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cache
from tempfile import TemporaryFile
from typing import BinaryIO, cast

import httpx2
import orjson
import pybase64
import structlog

from gateway.catalog.declared import Host
from gateway.domain import ImageRequest, InputImage, Operation, PartialSink, SecretText
from gateway.image_models import Model
from gateway.image_parameters import sent_fields
from gateway.net.downloads import DownloadRefused, Downloads
from gateway.provider_answers import ProviderAnswer
from gateway.providers.base import CredentialState, ProviderFailure, interrupted, too_large
from gateway.providers.connections import (
    POOL_TIMEOUT_SECONDS,
    AnswerTooLong,
    ProviderConnections,
    Sending,
    new_sending,
)
from gateway.providers.host_errors import redact
from gateway.providers.openai.answers import (
    read_answer,
    read_body,
    read_completed,
    read_event,
    read_model_names,
    read_partial,
    read_shutdown_dates,
    refused,
    stream_failed,
    unreadable,
)
from gateway.providers.openai.client import UNSENT_OF_A_CALL, ImagesClient
from gateway.providers.openai.dialects import (
    address_of,
    described,
    fields_of,
    input_names,
    refused_by_host,
    seeded,
)
from gateway.providers.openai.event_stream import EventStream
from gateway.providers.openai.sdk import (
    APIConnectionError,
    APIError,
    APIStatusError,
    Omit,
    omit,
)
from gateway.providers.openai.transport import PooledClient, PooledTransport
from gateway.request_record import current

PATHS = {
    Operation.GENERATION: "/images/generations",
    Operation.EDIT: "/images/edits",
    Operation.VARIATION: "/images/variations",
}
log = structlog.get_logger(__name__)
MODELS_PATH = "/models"
MODELS_TIMEOUT_SECONDS = 30.0
TEST_TIMEOUT_SECONDS = 10.0
KNOWN_KEY_STATUSES = frozenset({403, 429})
"""A key restricted to other routes, or rate limited: the key itself is valid."""
REFUSED_KEY_STATUSES = frozenset({401})
JSON = "application/json"
MICROSECONDS = 1_000_000
FORM = {"Content-Type": "multipart/form-data"}


class OpenAIImages:
    """The provider `openai`, constructed in a running event loop."""

    def __init__(
        self,
        connections: ProviderConnections,
        *,
        base_url: str,
        read_timeout_seconds: float | None,
        max_answer_bytes: int,
        downloads: Downloads,
        host: Host | None = None,
    ) -> None:
        self._downloads = downloads
        self._host = host
        self._refused = refused if host is None else refused_by_host
        self._base_url = base_url
        self._read_timeout_seconds = read_timeout_seconds
        transport = PooledTransport(connections, max_answer_bytes=max_answer_bytes)
        self._client = ImagesClient(base_url, PooledClient(transport))
        address = base_url.rstrip("/")
        self._urls = {operation: address + path for operation, path in PATHS.items()}
        self._models_url = address + MODELS_PATH

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
            ProviderFailure: the call returned no images.
        """
        sending = new_sending()
        try:
            return await self._buy(request, credential, partials, sending)
        except ProviderFailure as failure:
            failure.reply = sending.reply
            if self._host is not None:
                redact(failure, credential)
            raise

    async def _buy(
        self,
        request: ImageRequest,
        credential: SecretText,
        partials: PartialSink | None,
        sending: Sending,
    ) -> ProviderAnswer:
        wording = request.model.wording
        if wording is not None:
            return await self._buy_of_host(seeded(request), credential, sending)
        with self._failures(sending):
            if request.stream:
                stream = await self._open_stream(request, credential)
                async with stream:
                    if not await _is_one_object(stream.response):
                        return await _read_stream(stream, request, partials, sending)
                    content = stream.response.content
            else:
                content = (await self._post(request, credential)).content
        return await self._read(content, request, sending)

    async def _buy_of_host(
        self, request: ImageRequest, credential: SecretText, sending: Sending
    ) -> ProviderAnswer:
        """Buy from a declared host, which is billed by the image or by the time of the call."""
        started = time.perf_counter()
        seconds = request.model.read_timeout_seconds
        try:
            with self._failures(sending):
                async with asyncio.timeout(seconds):
                    response = await self._post(request, credential)
        except TimeoutError:
            raise interrupted(sent=sending.had_connection) from None
        elapsed = min(time.perf_counter() - started, seconds)
        microseconds = int(elapsed * MICROSECONDS) or 1
        try:
            answer = await self._read(response.content, request, sending)
        except ProviderFailure as failure:
            failure.microseconds = microseconds
            raise
        return described(answer, request, microseconds=microseconds)

    async def _read(
        self, content: bytes, request: ImageRequest, sending: Sending
    ) -> ProviderAnswer:
        body = read_body(content)
        items = cast("list[dict[str, object]]", body["data"])
        images = [item.get("b64_json") for item in items]
        if None in images:
            images = await asyncio.gather(*(self._image(item) for item in items))
        return read_answer(body, images, request, sending.reply)

    async def _post(self, request: ImageRequest, credential: SecretText) -> httpx2.Response:
        """Make the paid call and read its whole answer."""
        url = self._urls[request.operation]
        files = _files(request)
        if files is None:
            content = orjson.dumps(_fields(request))
            headers = self._headers(credential, is_form=False)
            return await self._client.post_json(url, content, headers, self._timeout(request))
        return await self._client.post(
            url,
            cast_to=httpx2.Response,
            body=_fields(request),
            files=files,
            options={
                "headers": self._headers(credential, is_form=True),
                "timeout": self._timeout(request),
            },
        )

    async def _open_stream(self, request: ImageRequest, credential: SecretText) -> EventStream:
        """Make the paid call and return its events, which follow."""
        files = _files(request)
        return await self._client.post(
            self._urls[request.operation],
            cast_to=object,
            body=None if files is None else _fields(request),
            content=orjson.dumps(_fields(request)) if files is None else None,
            files=files,
            options={
                "headers": self._headers(credential, is_form=files is not None),
                "timeout": self._timeout(request),
            },
            stream=True,
            stream_cls=EventStream,
        )

    def _timeout(self, request: ImageRequest) -> httpx2.Timeout:
        read_seconds = self._read_timeout_seconds or request.model.read_timeout_seconds
        return _limits(float(read_seconds))

    def _headers(self, credential: SecretText, *, is_form: bool) -> dict[str, str | Omit]:
        headers = self._authorization(credential)
        if is_form:
            headers |= FORM
        if (trace := current().trace) is not None:
            headers["traceparent"] = trace.traceparent()
        return headers

    def _authorization(self, credential: SecretText) -> dict[str, str | Omit]:
        key = credential.reveal()
        headers: dict[str, str | Omit] = {
            "Authorization": f"Bearer {key}" if key else omit,  # a host may want none
            **UNSENT_OF_A_CALL,
        }
        if self._host is not None and self._host.host_header is not None:
            headers["Host"] = self._host.host_header
        return headers

    async def _image(self, item: Mapping[str, object]) -> object:
        """Return the image as base64; some OpenAI-compatible hosts answer with links only.

        None if the link cannot be fetched: the answer as a whole then counts as unreadable.
        """
        url = item.get("url")
        if item.get("b64_json") is not None or not isinstance(url, str):
            return item.get("b64_json")
        with TemporaryFile() as file:
            try:
                await self._downloads.fetch(address_of(url, self._base_url), file)
            except DownloadRefused as refusal:
                log.warning("provider_link_refused", reason=refusal.reason)
                return None
            return pybase64.b64encode(file.read()).decode()

    async def shutdown_dates(self, credential: SecretText) -> Mapping[str, date]:
        """Fetch the models' shutdown dates from `GET /v1/models`.

        Raises:
            ProviderFailure: no answer, or a malformed one.
        """
        return read_shutdown_dates(await self._list(credential))

    async def listed_models(self, credential: SecretText) -> frozenset[str]:
        """Fetch the names of the models from `GET /v1/models`.

        Raises:
            ProviderFailure: no answer, or a malformed one.
        """
        return read_model_names(await self._list(credential))

    async def _list(self, credential: SecretText) -> bytes:
        sending = new_sending()
        try:
            with self._failures(sending):
                async with asyncio.timeout(MODELS_TIMEOUT_SECONDS):
                    return (await self._models(credential, MODELS_TIMEOUT_SECONDS)).content
        except TimeoutError:
            raise interrupted(sent=sending.had_connection) from None

    async def test_credential(self, credential: SecretText) -> CredentialState:
        """Test a credential with the list of models, which is free; its content is ignored."""
        sending = new_sending()
        try:
            async with asyncio.timeout(TEST_TIMEOUT_SECONDS):
                await self._models(credential, TEST_TIMEOUT_SECONDS)
        except APIStatusError as error:
            if error.status_code in REFUSED_KEY_STATUSES:
                return CredentialState.INVALID
            if error.status_code not in KNOWN_KEY_STATUSES:
                return CredentialState.UNREACHABLE
        except (APIConnectionError, AnswerTooLong, TimeoutError) as error:
            log.info(
                "credential_not_tested", error=type(error).__name__, sent=sending.had_connection
            )
            return CredentialState.UNREACHABLE
        return CredentialState.VALID

    async def _models(self, credential: SecretText, seconds: float) -> httpx2.Response:
        return await self._client.get(
            self._models_url,
            cast_to=httpx2.Response,
            options={"headers": self._authorization(credential), "timeout": seconds},
        )

    async def is_ready(self, model: Model, credential: SecretText) -> bool:
        """Return True if a declared host lists its models, which runs none of them."""
        del model
        return await self.test_credential(credential) is CredentialState.VALID

    @contextmanager
    def _failures(self, sending: Sending) -> Iterator[None]:
        """Say what each error of the SDK may have cost; none keeps the request and its key."""
        try:
            yield
        except APIStatusError as error:
            answer = error.response
            raise self._refused(error.status_code, answer.headers, answer.content) from None
        except (APIConnectionError, httpx2.TransportError):
            raise interrupted(sent=sending.had_connection) from None
        except AnswerTooLong as error:
            raise too_large(error.max_bytes) from None
        except APIError as error:  # an event of a stream that reports an error
            raise stream_failed(error.body) from None


@cache  # there are as many as models' timeouts
def _limits(read_seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(POOL_TIMEOUT_SECONDS, read=read_seconds)


async def _is_one_object(response: httpx2.Response) -> bool:
    """Return True for the answer of a host that does not stream; it is then read completely.

    Its image is paid for all the same. Events stay events, whatever type the host calls them.
    """
    if response.headers.get("Content-Type", "").partition(";")[0].strip() != JSON:
        return False
    return (await response.aread()).lstrip().startswith(b"{")


async def _read_stream(
    stream: EventStream,
    request: ImageRequest,
    partials: PartialSink | None,
    sending: Sending,
) -> ProviderAnswer:
    """Read events until the last one. A stream that ends without it may have been charged."""
    try:
        async for data in stream:
            event = read_event(data)
            if str(event.get("type")).endswith(".completed"):
                return read_completed(event, request, sending.reply)
            partial = read_partial(event, request)
            if partials is not None and partial is not None:
                partials(partial)
    except (ValueError, RecursionError):  # an event that is neither UTF-8 nor JSON
        raise unreadable() from None
    raise unreadable()


def _fields(request: ImageRequest) -> dict[str, object]:
    """Return the fields of the call.

    Models of DALL·E's time, which only an operator's own host serves, are asked for base64.
    """
    if request.model.wording is not None:
        return fields_of(request, request.model.wording)
    fields: dict[str, object] = {**sent_fields(request)}
    if request.model.continuity.bare_answer:
        fields["response_format"] = "b64_json"
    if request.stream:
        fields |= {"stream": True, "partial_images": request.partial_images}
    return fields


def _files(request: ImageRequest) -> Sequence[tuple[str, tuple[str, BinaryIO, str]]] | None:
    """Return the input images of an edit as multipart files, each with its real content type.

    None for a generation, which is JSON.

    OpenAI refuses `application/octet-stream`. Files are read while they are sent.
    """
    if request.operation is Operation.GENERATION:
        return None
    wording = request.model.wording
    name, mask = "image" if len(request.inputs) == 1 else "image[]", "mask"
    if wording is not None:
        name, mask = input_names(wording, len(request.inputs))
    named = [(name, image) for image in request.inputs]
    named += [
        (name, image)
        for name, image in ((mask, request.mask), ("markup", request.markup))
        if image is not None
    ]
    return [(name, _file(name, number, image)) for number, (name, image) in enumerate(named)]


def _file(name: str, number: int, image: InputImage) -> tuple[str, BinaryIO, str]:
    extension = image.media_type.partition("/")[2]
    return (f"{name.rstrip('[]')}-{number}.{extension}", image.file, image.media_type)
