"""The pooled connections of one provider's calls, which know if a call had one to be written to.

A call that never had a connection was not sent and cost nothing; any other may have been charged,
whatever broke it (docs/money.md). No cookies are kept: one tenant's must not be sent with another's
key.
"""

import ssl
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import aiohttp
import httpx2
import structlog
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from gateway import __version__
from gateway.errors import ConfigurationError
from gateway.provider_answers import ProviderReply

KEEPALIVE_SECONDS = 30.0
POOL_TIMEOUT_SECONDS = 10.0
READ_BUFFER_BYTES = 262_144
"""Answers are megabytes: a larger buffer than the default avoids a wake-up for every 64 KB."""
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Sending:
    """State of one call: true once it had a connection to write to, and the reply received."""

    had_connection: bool = False
    reply: ProviderReply | None = None


_current: ContextVar[Sending] = ContextVar("sending")


def new_sending() -> Sending:
    """Begin a call in the current task; the connections record its state in the result."""
    sending = Sending()
    _current.set(sending)
    return sending


class AnswerTooLong(Exception):
    """A body over its limit in bytes."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"The answer is longer than {max_bytes} bytes.")
        self.max_bytes = max_bytes


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


class ProviderConnections:
    """Connections to one address, constructed in a running event loop.

    `proxy` may contain a user and password. `ca_file`: the certificates of a private authority,
    trusted instead of the public ones.
    """

    def __init__(
        self,
        *,
        base_url: str,
        proxy: str | None,
        connect_timeout_seconds: float,
        max_connections: int,
        ca_file: Path | None = None,
    ) -> None:
        self._connect_timeout_seconds = connect_timeout_seconds
        self._proxy, known = _read_proxy(proxy)
        # With TLS, only the proxy's CONNECT carries the credentials, not the tunnelled requests.
        has_tunnel = URL(base_url).scheme == "https"
        self._proxy_headers = known if has_tunnel else None
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=max_connections,
                keepalive_timeout=KEEPALIVE_SECONDS,
                # Uses bundled certificates on machines without any, and honours SSL_CERT_FILE.
                ssl=_ssl_context(ca_file),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={} if has_tunnel else known,
            skip_auto_headers=("Accept", "Content-Type"),
            read_bufsize=READ_BUFFER_BYTES,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def send(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str],
        read_seconds: float,
        content: bytes | AsyncIterable[bytes] | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request, without following redirects: one could buy twice. Release the response.

        The request's `Sending` must have been begun in this task.

        Raises:
            aiohttp.ClientError, TimeoutError: no answer.
        """
        return await self._session.request(
            method,
            url,
            data=content,
            headers=headers,
            timeout=_limits(self._connect_timeout_seconds, read_seconds),
            allow_redirects=False,
            proxy=self._proxy,
            proxy_headers=self._proxy_headers,
        )


@lru_cache
def _limits(connect_seconds: float, read_seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(
        total=None,
        connect=POOL_TIMEOUT_SECONDS,
        sock_connect=connect_seconds,
        sock_read=read_seconds,
    )


def note_interruption(error: Exception, sending: Sending) -> None:
    """Log a broken connection by its type alone: the exception's text may quote the key."""
    log.warning(
        "provider_connection_failed",
        error=type(error).__name__,
        had_connection=sending.had_connection,
    )


def current_sending() -> Sending:
    """Return the state of the call that the current task makes."""
    return _current.get()


async def read_limited(response: aiohttp.ClientResponse, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield the chunks of a body, decompressed.

    Raises:
        AnswerTooLong: the body is longer than `max_bytes`.
        aiohttp.ClientError, TimeoutError: it broke off.
    """
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > max_bytes:
            raise AnswerTooLong(max_bytes)
        yield chunk


def _ssl_context(ca_file: Path | None) -> ssl.SSLContext:
    if ca_file is None:
        return _public_authorities()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # SSLError is one
        raise ConfigurationError(
            f"{ca_file} holds no certificates that can be read ({type(error).__name__})."
        ) from None


@cache
def _public_authorities() -> ssl.SSLContext:
    """Load the certificates of public authorities once, for all vendors: 50 ms, 1.4 MB."""
    return httpx2.create_ssl_context()


def user_agent() -> str:
    """Return the User-Agent of calls that the gateway writes itself."""
    return f"image-gateway/{__version__}"


def _read_proxy(proxy: str | None) -> tuple[URL | None, dict[str, str]]:
    """Split a proxy's URL into its address and the header that authenticates to it, if any."""
    if proxy is None:
        return None, {}
    url = URL(proxy)
    if url.user is None:
        return url, {}
    known = aiohttp.encode_basic_auth(url.user, url.password or "")
    return url.with_user(None), {"Proxy-Authorization": known}
