"""Client of OpenAI's Images API over plain HTTP: one shared session, one key per call, no retries.

It does not use the vendor's SDK (docs/decisions/0018): a call is one POST, and only the HTTP client
itself knows if the request was sent, which decides whether it may have been charged.
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
from gateway.image_parameters import sent_fields
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
"""A key restricted to other routes, or rate limited: the key itself is valid."""
REFUSED_KEY_STATUSES = frozenset({401})
KEEPALIVE_SECONDS = 30.0
POOL_TIMEOUT_SECONDS = 10.0
READ_BUFFER_BYTES = 262_144
"""Answers are megabytes: a larger buffer than the default avoids a wake-up for every 64 KB."""
MAX_ERROR_BYTES = 1_048_576
SUCCESS = range(200, 300)
REQUEST_ID_HEADER = "x-request-id"
# https://platform.openai.com/docs/api-reference/debugging-requests
REPLY_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


@dataclass(slots=True)
class _Sending:
    """State of one call: true once it had a connection to write to, and the reply received."""

    had_connection: bool = False
    reply: ProviderReply | None = None


_current: ContextVar[_Sending] = ContextVar("sending")


class _Connector(aiohttp.TCPConnector):
    """Records the calls that obtained a connection: from then on they may have been sent.

    aiohttp's tracing reports it too, but makes every call slower by a sixth.
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
    """The provider `openai`, constructed in a running event loop.

    `proxy` may contain a user and password.
    """

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
        # With TLS, only the proxy's CONNECT carries the credentials, not the tunnelled requests.
        has_tunnel = self._models_url.scheme == "https"
        self._proxy_headers = known if has_tunnel else None
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=max_connections,
                keepalive_timeout=KEEPALIVE_SECONDS,
                # Uses bundled certificates on machines without any, and honours SSL_CERT_FILE.
                ssl=httpx2.create_ssl_context(),
            ),
            # One tenant's cookies must not be sent with another's key.
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
            ProviderFailure: the call returned no images.
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
        """Return the image as base64; some OpenAI-compatible hosts answer with links only.

        None if the link cannot be fetched: the answer as a whole then counts as unreadable.
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
        """Fetch the models' shutdown dates from `GET /v1/models`.

        Raises:
            ProviderFailure: no answer, or a malformed one.
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
        """Test a credential with the list of models, which is free; its content is ignored."""
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
        """Make the paid call; its body is read inside the `with` block.

        Raises:
            ProviderFailure: the status is not a success, or the connection failed, also inside
                the block.
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
                # A redirect would send the prompt elsewhere, and could buy twice.
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
    """Return the failure of a connection, without aiohttp's exception, which may quote the key."""
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
    """Return the status and OpenAI's id of the call, dropping a malformed id (untrusted text)."""
    given = response.headers.get(REQUEST_ID_HEADER, "")
    is_usual = REPLY_ID.fullmatch(given) is not None
    return ProviderReply(response.status, redact(given) if is_usual else None)


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    return b"".join([chunk async for chunk in _limited(response, max_bytes)])


async def _limited(response: aiohttp.ClientResponse, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield the chunks of the answer's body.

    Raises:
        ProviderFailure: the body is longer than `max_bytes`.
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
    """Read events until the last one. A stream that ends without it may have been charged."""
    async for data in read_events(chunks):
        event = read_event(data)
        if str(event.get("type")).endswith(".completed"):
            return read_completed(event, request, sending.reply)
        partial = read_partial(event, request)
        if partials is not None and partial is not None:
            partials(partial)
    raise unreadable()


def _read_proxy(proxy: str | None) -> tuple[URL | None, dict[str, str]]:
    """Split a proxy's URL into its address and the header that authenticates to it, if any."""
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
    """Return the body of the call and its content headers.

    Models of DALL·E's time, which only an operator's own host serves, are asked for base64.
    """
    fields = sent_fields(request)
    if request.model.continuity.bare_answer:
        fields["response_format"] = "b64_json"
    if request.stream:
        fields |= {"stream": True, "partial_images": request.partial_images}
    if request.operation is Operation.GENERATION:
        return orjson.dumps(fields), {"Content-Type": "application/json"}
    # The vendor's SDK encodes forms with this library, so the fields are identical.
    form = httpx2.Request("POST", str(url), data=fields, files=_files(request))
    return _chunks(form), {name: form.headers[name] for name in ("Content-Type", "Content-Length")}


async def _chunks(form: httpx2.Request) -> AsyncIterator[bytes]:
    async for chunk in cast("httpx2.AsyncByteStream", form.stream):
        yield chunk


def _files(request: ImageRequest) -> Sequence[tuple[str, tuple[str, BinaryIO, str]]]:
    """Return the input images of an edit as multipart files, each with its real content type.

    OpenAI refuses `application/octet-stream`. Files are read while they are sent.
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
