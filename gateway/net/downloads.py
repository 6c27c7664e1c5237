"""Bounded downloads from untrusted addresses, with protection against SSRF.

The address comes from a client or a provider's answer, so the request must not reach this machine,
its network or its cloud, must not carry a secret, and its response is limited in size and time.
"""

import asyncio
import ssl
from enum import StrEnum
from typing import BinaryIO

import aiohttp
from yarl import URL

from gateway.net.addresses import is_public
from gateway.net.outbound import (
    AddressRefused,
    Resolver,
    SocketFactory,
    SystemResolver,
    UnreadableUrl,
    anywhere,
    has_user,
    is_host_name,
    is_literal,
    open_session,
    origin,
    read_url,
)

HTTPS_PORT = 443
OK = 200
REDIRECTS = range(300, 400)


class DownloadProblem(StrEnum):
    """Reason why a file was not fetched."""

    NOT_HTTPS = "not_https"
    BAD_URL = "bad_url"
    PRIVATE_ADDRESS = "private_address"
    REDIRECT = "redirect"
    TOO_LARGE = "too_large"
    BAD_STATUS = "bad_status"
    UNREACHABLE = "unreachable"
    TOO_SLOW = "too_slow"
    NOT_AN_IMAGE = "not_an_image"


class DownloadRefused(Exception):
    """A refused or failed download.

    `message` never quotes the address: its query is often a signature.
    """

    def __init__(self, reason: DownloadProblem, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Downloads:
    """Fetches files, `max_connections` at once; constructed in a running event loop.

    `trusted_origins` are the operator's own hosts, as returned by `origin_of`: they may be private
    and use plain HTTP. An address can name any path there, so addresses from clients must be
    fetched by an instance without trusted origins.

    `resolver`, `ssl_context` and `open_socket` default to the system's own. None of them can
    bypass the checks: each address is checked after the resolver and before the socket.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        total_seconds: float,
        connect_seconds: float,
        max_connections: int = 64,
        trusted_origins: frozenset[str] = frozenset(),
        resolver: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
        open_socket: SocketFactory | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._total_seconds = total_seconds
        self._trusted_origins = trusted_origins
        self._slots = asyncio.Semaphore(max_connections)
        self._system_resolver = SystemResolver()
        self._guarded, self._trusted = (
            open_session(
                allows,
                resolver or self._system_resolver,
                open_socket=open_socket,
                ssl_context=ssl_context,
                timeout=aiohttp.ClientTimeout(total=None, connect=connect_seconds),
            )
            for allows in (is_public, anywhere)
        )

    async def fetch(self, url: str, target: BinaryIO) -> int:
        """Download `url` into `target`, an empty file, and rewind it.

        Returns the number of bytes. After any failure the file is empty again.

        Raises:
            DownloadRefused: the address may not be fetched, or the download failed.
        """
        address = _parse(url)
        session = self._trusted
        if origin(address) not in self._trusted_origins:
            _refuse_inside(address)
            session = self._guarded
        size = 0
        try:
            size = await self._fetch_in_time(session, address, target)
        finally:
            target.seek(0)
            target.truncate(size)
        return size

    async def close(self) -> None:
        """Close connections."""
        await self._guarded.close()
        await self._trusted.close()
        self._system_resolver.close()

    async def _fetch_in_time(
        self, session: aiohttp.ClientSession, address: URL, target: BinaryIO
    ) -> int:
        # `from None`: aiohttp's exceptions quote the whole address, which must not reach the logs.
        try:
            async with asyncio.timeout(self._total_seconds), self._slots:
                return await self._stream(session, address, target)
        except aiohttp.ClientError as error:
            raise _explain(error) from None
        except TimeoutError:
            raise DownloadRefused(
                DownloadProblem.TOO_SLOW,
                f"The file did not arrive within {self._total_seconds:g} seconds. "
                "Try again, or send the image itself.",
            ) from None

    async def _stream(self, session: aiohttp.ClientSession, address: URL, target: BinaryIO) -> int:
        size = 0
        async with session.get(address, allow_redirects=False) as answer:
            _refuse_answer(answer)
            self._refuse_size(answer.content_length or 0)
            async for chunk in answer.content.iter_any():
                size += len(chunk)
                self._refuse_size(size)
                target.write(chunk)  # blocks briefly: a few buffers, into the page cache
        if size == 0:
            raise DownloadRefused(
                DownloadProblem.NOT_AN_IMAGE, "The file behind the link is empty."
            )
        return size

    def _refuse_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise DownloadRefused(
                DownloadProblem.TOO_LARGE,
                f"The file is larger than {self._max_bytes} bytes. Use a smaller image.",
            )


def origin_of(url: str) -> str:
    """Return `scheme://host:port` of the operator's own address, with an explicit port.

    Raises:
        ValueError: the address has no host.
    """
    address = URL(url, encoded=url.isascii())
    if not address.raw_host:
        raise ValueError(f"{url} names no host")
    return origin(address)


# Requests


def _parse(url: str) -> URL:
    """Parse `url` once: the result is both checked and sent."""
    try:
        address = read_url(url)
    except UnreadableUrl:
        raise _bad_url() from None
    if has_user(address):
        raise DownloadRefused(
            DownloadProblem.BAD_URL, "The link contains a user name or password. Remove it."
        )
    return address


def _refuse_inside(address: URL) -> None:
    if address.scheme != "https":
        raise DownloadRefused(DownloadProblem.NOT_HTTPS, "The link must begin with https://.")
    host = address.raw_host
    if not host:
        raise _bad_url()
    if address.port != HTTPS_PORT:
        raise DownloadRefused(
            DownloadProblem.BAD_URL,
            "The link names a port. Remove it: only port 443 is allowed.",
        )
    if is_literal(host):
        if not is_public(host):
            raise _private()
    elif not is_host_name(host):
        raise _bad_url()


def _bad_url() -> DownloadRefused:
    return DownloadRefused(
        DownloadProblem.BAD_URL,
        "The link cannot be read. Use one such as https://example.com/image.png",
    )


def _private() -> DownloadRefused:
    return DownloadRefused(
        DownloadProblem.PRIVATE_ADDRESS,
        "The link leads to an address that is not on the public internet. "
        "Send the image itself, or a link that is public.",
    )


# Responses


def _refuse_answer(answer: aiohttp.ClientResponse) -> None:
    if answer.status in REDIRECTS:
        raise DownloadRefused(
            DownloadProblem.REDIRECT, "The link redirects to another one. Use the final link."
        )
    if answer.status != OK:
        raise DownloadRefused(
            DownloadProblem.BAD_STATUS,
            f"The host answers with status {answer.status}. Check that the link is public.",
        )
    encodings = {text.strip().lower() for text in answer.headers.getall("Content-Encoding", [])}
    if encodings - {"", "identity"}:
        raise DownloadRefused(
            DownloadProblem.NOT_AN_IMAGE,
            "The host sends the file compressed, which was not requested. "
            "Send the image itself, or a link to another host.",
        )


def _explain(error: aiohttp.ClientError) -> DownloadRefused:
    if isinstance(error, aiohttp.ClientSSLError):
        message = "The host's certificate cannot be verified. Send the image itself."
    elif isinstance(error, aiohttp.ClientConnectorError) and isinstance(
        error.os_error, AddressRefused
    ):
        return _private()
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        message = "The link's host has no address. Check its name."
    elif isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        message = "The link's host cannot be reached. Try again, or send the image itself."
    else:
        message = "The host closed the connection before the file was complete. Try again."
    return DownloadRefused(DownloadProblem.UNREACHABLE, message)
