"""OpenAI's Images API over plain HTTP: one shared session, one key per call, no retries.

The vendor's SDK is left out (docs/decisions/0018): a call is one POST, and whether its request was
sent, which decides about money, only the HTTP client itself can tell.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date
from tempfile import TemporaryFile
from typing import BinaryIO, cast

import aiohttp
import httpx2
import orjson
import pybase64
import structlog
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from gateway import __version__
from gateway.domain import (
    ImageRequest,
    InputImage,
    Operation,
    PartialSink,
    ProviderAnswer,
    ProviderReply,
    SecretText,
)
from gateway.net.downloads import DownloadRefused, Downloads
from gateway.providers.base import CredentialState, ProviderFailure
from gateway.providers.openai.answers import (
    interrupted,
    read_answer,
    read_body,
    read_completed,
    read_event,
    read_partial,
    read_shutdown_dates,
    refused,
    too_large,
    unreadable,
)
from gateway.providers.openai.event_stream import read_events
from gateway.request_record import current
from gateway.telemetry import redact

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
"""A key restricted to other routes, or that has used up its pace: the key itself is a known one."""
REFUSED_KEY_STATUSES = frozenset({401})
KEEPALIVE_SECONDS = 30.0
POOL_TIMEOUT_SECONDS = 10.0
READ_BUFFER_BYTES = 262_144
"""Answers are megabytes: a larger buffer than the usual one saves a wake-up for every 64 KB."""
MAX_ERROR_BYTES = 1_048_576
SUCCESS = range(200, 300)
REQUEST_ID_HEADER = "x-request-id"
# https://platform.openai.com/docs/api-reference/debugging-requests
REPLY_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


@dataclass(slots=True)
class _Sending:
    """One call: whether it had a connection to be written to, and the reply that came."""

    had_connection: bool = False
    reply: ProviderReply | None = None


_current: ContextVar[_Sending] = ContextVar("sending")


class _Connector(aiohttp.TCPConnector):
    """Notes which calls have got a connection: from then on they may have been sent.

    Traces tell it too, but make every call dearer by a sixth.
    """

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own parameter
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        _current.get().had_connection = True
        return connection


class OpenAIImages:
    """The provider `openai`; made in a running event loop. `proxy` may hold a user and password."""

    def __init__(
        self,
        *,
        base_url: str,
        proxy: str | None,
        connect_timeout_seconds: float,
        read_timeout_seconds: float | None,
        max_connections: int,
        max_answer_bytes: int,
        downloads: Downloads,
    ) -> None:
        self._downloads = downloads
        self._max_answer_bytes = max_answer_bytes
        self._connect_timeout_seconds = connect_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds
        address = base_url.rstrip("/")
        self._urls = {operation: URL(address + path) for operation, path in PATHS.items()}
        self._models_url = URL(address + MODELS_PATH)
        self._proxy, known = _read_proxy(proxy)
        # Where there is TLS, the proxy hears it as the tunnel is made, and nobody afterwards.
        has_tunnel = self._models_url.scheme == "https"
        self._proxy_headers = known if has_tunnel else None
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=max_connections,
                keepalive_timeout=KEEPALIVE_SECONDS,
                # With certificates of its own, for machines that have none, and heeding
                # SSL_CERT_FILE.
                ssl=httpx2.create_ssl_context(),
            ),
            # One tenant's cookies must not go out with another's key.
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                "User-Agent": f"image-gateway/{__version__}",
                "Accept": "application/json",
                **({} if has_tunnel else known),
            },
            read_bufsize=READ_BUFFER_BYTES,
        )

    async def close(self) -> None:
        """Close connections."""
        await self._session.close()
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
        sending = _Sending()
        try:
            return await self._buy(request, credential, partials, sending)
        except ProviderFailure as failure:
            failure.reply = sending.reply
            raise

    async def _buy(
        self,
        request: ImageRequest,
        credential: SecretText,
        partials: PartialSink | None,
        sending: _Sending,
    ) -> ProviderAnswer:
        async with self._post(request, credential, sending) as response:
            if request.stream:
                chunks = _limited(response, self._max_answer_bytes)
                return await _read_stream(chunks, request, partials, sending)
            content = await _read(response, self._max_answer_bytes)
        body = read_body(content)
        items = cast("list[dict[str, object]]", body["data"])
        images = [item.get("b64_json") for item in items]
        if None in images:
            images = await asyncio.gather(*(self._image(item) for item in items))
        return read_answer(body, images, request, sending.reply)

    async def _image(self, item: Mapping[str, object]) -> object:
        """Return the image as base64; some OpenAI-compatible hosts answer with links alone.

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
        sending = _Sending()
        _current.set(sending)
        try:
            async with (
                asyncio.timeout(MODELS_TIMEOUT_SECONDS),
                self._session.get(
                    self._models_url,
                    headers=_authorization(credential),
                    timeout=self._timeout(MODELS_TIMEOUT_SECONDS),
                    allow_redirects=False,
                    proxy=self._proxy,
                    proxy_headers=self._proxy_headers,
                ) as response,
            ):
                await _refuse_failed(response)
                return read_shutdown_dates(await _read(response, self._max_answer_bytes))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _interrupted(error, sending) from None

    async def test_credential(self, credential: SecretText) -> CredentialState:
        """Ask for the list of models, which costs nothing; its content does not matter."""
        _current.set(_Sending())
        try:
            async with (
                asyncio.timeout(TEST_TIMEOUT_SECONDS),
                self._session.get(
                    self._models_url,
                    headers=_authorization(credential),
                    timeout=self._timeout(TEST_TIMEOUT_SECONDS),
                    allow_redirects=False,
                    proxy=self._proxy,
                    proxy_headers=self._proxy_headers,
                ) as response,
            ):
                if response.status in SUCCESS or response.status in KNOWN_KEY_STATUSES:
                    return CredentialState.VALID
                if response.status in REFUSED_KEY_STATUSES:
                    return CredentialState.INVALID
        except (aiohttp.ClientError, TimeoutError) as error:
            log.info("credential_not_tested", error=type(error).__name__)
        return CredentialState.UNREACHABLE

    @asynccontextmanager
    async def _post(
        self, request: ImageRequest, credential: SecretText, sending: _Sending
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to the paid call, whose body is read in the block.

        Raises:
            ProviderFailure: its status is not of success, or the connection failed, in the block
                as well.
        """
        url = self._urls[request.operation]
        read_seconds = self._read_timeout_seconds or request.model.read_timeout_seconds
        content, headers = _content(request, url)
        _current.set(sending)
        if (trace := current().trace) is not None:
            headers["traceparent"] = trace.traceparent()
        try:
            async with self._session.post(
                url,
                data=content,
                headers=_authorization(credential) | headers,
                timeout=self._timeout(read_seconds),
                # A redirect would carry the prompt, and could buy twice.
                allow_redirects=False,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
            ) as response:
                sending.reply = _reply(response)
                await _refuse_failed(response)
                yield response
        except aiohttp.ClientError as error:
            raise _interrupted(error, sending) from None

    def _timeout(self, read_seconds: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(
            total=None,
            connect=POOL_TIMEOUT_SECONDS,
            sock_connect=self._connect_timeout_seconds,
            sock_read=read_seconds,
        )


def _interrupted(error: Exception, sending: _Sending) -> ProviderFailure:
    """What a failed connection means. Its cause is dropped: aiohttp's may quote the key."""
    log.warning(
        "provider_connection_failed",
        error=type(error).__name__,
        had_connection=sending.had_connection,
    )
    return interrupted(sent=sending.had_connection)


async def _refuse_failed(response: aiohttp.ClientResponse) -> None:
    if response.status not in SUCCESS:
        content = await _read(response, MAX_ERROR_BYTES)
        raise refused(response.status, response.headers, content)


def _reply(response: aiohttp.ClientResponse) -> ProviderReply:
    """The status, and OpenAI's id of the call. It is another's text: only of a usual form."""
    given = response.headers.get(REQUEST_ID_HEADER, "")
    is_usual = REPLY_ID.fullmatch(given) is not None
    return ProviderReply(response.status, redact(given) if is_usual else None)


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    return b"".join([chunk async for chunk in _limited(response, max_bytes)])


async def _limited(response: aiohttp.ClientResponse, max_bytes: int) -> AsyncIterator[bytes]:
    """The answer's body as it comes.

    Raises:
        ProviderFailure: it is longer than that.
    """
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > max_bytes:
            raise too_large(max_bytes)
        yield chunk


async def _read_stream(
    chunks: AsyncIterator[bytes],
    request: ImageRequest,
    partials: PartialSink | None,
    sending: _Sending,
) -> ProviderAnswer:
    """Read events until the last one. A stream that ends without it may have been paid."""
    async for data in read_events(chunks):
        event = read_event(data)
        if str(event.get("type")).endswith(".completed"):
            return read_completed(event, request, sending.reply)
        partial = read_partial(event, request)
        if partials is not None and partial is not None:
            partials(partial)
    raise unreadable()


def _read_proxy(proxy: str | None) -> tuple[URL | None, dict[str, str]]:
    """The proxy's address, and the header that tells it who calls, where it wants to know."""
    if proxy is None:
        return None, {}
    url = URL(proxy)
    if url.user is None:
        return url, {}
    known = aiohttp.encode_basic_auth(url.user, url.password or "")
    return url.with_user(None), {"Proxy-Authorization": known}


def _authorization(credential: SecretText) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential.reveal()}"}


def _content(
    request: ImageRequest, url: URL
) -> tuple[bytes | AsyncIterator[bytes], dict[str, str]]:
    """The body of the call, and the headers that say what it is."""
    fields = _parameters(request)
    if request.stream:
        fields |= {"stream": True, "partial_images": request.partial_images}
    if request.operation is Operation.GENERATION:
        return orjson.dumps(fields), {"Content-Type": "application/json"}
    # Field for field as the vendor's own SDK sends it, whose forms are this library's.
    form = httpx2.Request("POST", str(url), data=fields, files=_files(request))
    return _chunks(form), {name: form.headers[name] for name in ("Content-Type", "Content-Length")}


async def _chunks(form: httpx2.Request) -> AsyncIterator[bytes]:
    async for chunk in cast("httpx2.AsyncByteStream", form.stream):
        yield chunk


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


def _files(request: ImageRequest) -> Sequence[tuple[str, tuple[str, BinaryIO, str]]]:
    """The pictures of an edit as multipart files, each with its true content type.

    OpenAI refuses what is declared as `application/octet-stream`; files are read as they are sent.
    """
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
