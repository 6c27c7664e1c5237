"""The transport below OpenAI's SDK: the gateway's pooled connections, as httpx2 asks for them.

The SDK's own transport reports a connection that was reset after the request was written as a
connect timeout, and reads answers of any length.
"""

from collections.abc import AsyncIterable, AsyncIterator
from functools import lru_cache
from typing import cast

import aiohttp
import httpx2
from httpx2._client import UseClientDefault
from httpx2._types import (
    AuthTypes,
    CookieTypes,
    HeaderTypes,
    QueryParamTypes,
    RequestContent,
    RequestData,
    RequestExtensions,
    RequestFiles,
    TimeoutTypes,
)
from yarl import URL

from gateway.provider_answers import ProviderReply
from gateway.providers.connections import (
    ProviderConnections,
    current_sending,
    note_interruption,
    read_limited,
)
from gateway.providers.openai.rate_limits import read_limits
from gateway.providers.values import REQUEST_ID_HEADER, call_id

MAX_ERROR_BYTES = 1_048_576
MAX_URLS = 64
SUCCESS = range(200, 300)
_READ_HEADERS = ("Content-Type", "Retry-After")
"""The headers that the SDK or this package reads; each one of dozens costs time to convert."""


class PooledTransport(httpx2.AsyncBaseTransport):
    """Sends requests over pooled connections and bounds the answers."""

    def __init__(self, connections: ProviderConnections, *, max_answer_bytes: int) -> None:
        self._connections = connections
        self._max_answer_bytes = max_answer_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request.

        Raises:
            httpx2.ConnectError: it never had a connection to be written to.
            httpx2.ReadError: it may have been sent, and no answer came.
        """
        response = await self._send(request)
        return httpx2.Response(
            response.status,
            headers=_read_headers(response),
            stream=_Body(response, self._limit(response)),
        )

    async def fetch(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request and read the answer, without the layers that a stream takes.

        Raises:
            httpx2.ConnectError: it never had a connection to be written to.
            httpx2.ReadError: it may have been sent, and no whole answer came.
            AnswerTooLong: the answer exceeds its limit.
        """
        response = await self._send(request)
        try:
            chunks = [chunk async for chunk in read_limited(response, self._limit(response))]
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _interrupted(error) from None
        finally:
            await _give_back(response)
        content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return _WholeResponse(response.status, _read_headers(response), content, request)

    async def _send(self, request: httpx2.Request) -> aiohttp.ClientResponse:
        try:
            response = await self._connections.send(
                request.method,
                request.extensions["address"],
                headers={name.decode(): value.decode() for name, value in request.headers.raw},
                content=_content(request),
                read_seconds=request.extensions["timeout"]["read"],
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _interrupted(error) from None
        current_sending().reply = _reply(response)
        return response

    def _limit(self, response: aiohttp.ClientResponse) -> int:
        return self._max_answer_bytes if response.status in SUCCESS else MAX_ERROR_BYTES

    async def aclose(self) -> None:
        """Close the connections."""
        await self._connections.close()


class PooledClient(httpx2.AsyncClient):
    """httpx2's client, without the parts that the SDK's calls must not use, or need not.

    No cookies: one tenant's must not be sent with another's key. No redirects: one would send the
    prompt elsewhere, and could buy twice. No parsing of the same few URLs at each call.
    """

    def __init__(self, transport: PooledTransport) -> None:
        super().__init__(transport=transport, trust_env=False)
        self._pooled = transport

    def build_request(
        self,
        method: str,
        url: httpx2.URL | str,
        *,
        content: RequestContent | None = None,
        data: RequestData | None = None,
        files: RequestFiles | None = None,
        json: object = None,
        params: QueryParamTypes | None = None,
        headers: HeaderTypes | None = None,
        cookies: CookieTypes | None = None,
        timeout: TimeoutTypes | UseClientDefault = httpx2.USE_CLIENT_DEFAULT,
        extensions: RequestExtensions | None = None,
    ) -> httpx2.Request:
        """Build a request from these arguments alone, without a client's defaults."""
        del cookies
        # A body of bytes is sent as it is; httpx2 would work out headers that aiohttp adds itself.
        stream = httpx2.ByteStream(content) if isinstance(content, bytes) else None
        if isinstance(timeout, UseClientDefault):
            timeout = self.timeout
        limits = timeout if isinstance(timeout, httpx2.Timeout) else httpx2.Timeout(timeout)
        parsed, address = _parsed(str(url))
        return httpx2.Request(
            method,
            parsed,
            content=None if stream is not None else content,
            data=data,
            files=files,
            json=json,
            params=params,
            headers=headers,
            stream=stream,
            extensions={
                **(extensions or {}),
                "timeout": limits.as_dict(),
                "address": address,
            },
        )

    async def send(
        self,
        request: httpx2.Request,
        *,
        stream: bool = False,
        auth: AuthTypes | UseClientDefault | None = httpx2.USE_CLIENT_DEFAULT,
        follow_redirects: bool | UseClientDefault = httpx2.USE_CLIENT_DEFAULT,
    ) -> httpx2.Response:
        """Send a request; read the answer, unless it is to be streamed.

        Raises:
            httpx2.TransportError: no answer, or one that broke off.
            AnswerTooLong: the answer exceeds its limit.
        """
        del auth, follow_redirects
        if not stream:
            return await self._pooled.fetch(request)
        response = await self._pooled.handle_async_request(request)
        response.request = request
        return response


class _WholeResponse(httpx2.Response):
    """An answer that was read as a whole: a new `httpx2.Response` would read the bytes once more,
    by all the layers of a stream.
    """

    def __init__(
        self, status: int, headers: list[tuple[str, str]], content: bytes, request: httpx2.Request
    ) -> None:
        stream = httpx2.ByteStream(content)
        super().__init__(status, headers=headers, stream=stream, request=request)
        self._whole = content
        self.is_closed = self.is_stream_consumed = True

    @property
    def content(self) -> bytes:
        return self._whole

    async def aread(self) -> bytes:
        return self._whole


class _Body(httpx2.AsyncByteStream):
    """The body of an answer; closing it gives its connection back, or ends it if bytes remain."""

    def __init__(self, response: aiohttp.ClientResponse, max_bytes: int) -> None:
        self._response = response
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in read_limited(self._response, self._max_bytes):
                yield chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _interrupted(error) from None

    async def aclose(self) -> None:
        await _give_back(self._response)


@lru_cache(maxsize=MAX_URLS)
def _parsed(url: str) -> tuple[httpx2.URL, URL]:
    """Parse an address for httpx2 and for aiohttp."""
    return httpx2.URL(url), URL(url, encoded=True)


async def _give_back(response: aiohttp.ClientResponse) -> None:
    """Give the connection back to the pool, or end it if bytes of the answer remain unread."""
    response.release()
    await response.wait_for_close()


def _read_headers(response: aiohttp.ClientResponse) -> list[tuple[str, str]]:
    given = ((name, response.headers.get(name)) for name in _READ_HEADERS)
    return [(name, value) for name, value in given if value is not None]


def _content(request: httpx2.Request) -> bytes | AsyncIterable[bytes] | None:
    """Return the body: whole where httpx2 holds it so, in pieces where it reads files."""
    if isinstance(request.stream, httpx2.ByteStream):
        return b"".join(request.stream) or None
    return cast("AsyncIterable[bytes]", request.stream)


def _interrupted(error: Exception) -> httpx2.TransportError:
    """Return httpx2's error for a broken connection, without aiohttp's, which may quote the key."""
    sending = current_sending()
    note_interruption(error, sending)
    if sending.had_connection:
        return httpx2.ReadError("The connection broke.")
    return httpx2.ConnectError("No connection could be made.")


def _reply(response: aiohttp.ClientResponse) -> ProviderReply:
    """Return the status, the limits and OpenAI's id of the call.

    https://platform.openai.com/docs/api-reference/debugging-requests
    """
    named = call_id(response.headers.get(REQUEST_ID_HEADER))
    return ProviderReply(response.status, named, read_limits(response.headers))
