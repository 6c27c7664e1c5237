"""TLS without a proxy: the operator's certificate, which can be replaced while serving."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import structlog

from gateway.errors import ConfigurationError

log = structlog.get_logger(__name__)

SHUTDOWN_SECONDS = 1.0
"""The time for a client's goodbye; its connection is closed without one."""


class Certificate:
    """A certificate chain and its private key in PEM files, and the TLS context that uses them.

    Connections that are open keep the certificate they began with.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        """Read the files.

        Raises:
            ConfigurationError: they cannot be read, or do not belong together.
        """
        self._chain, self._key = chain, key
        self.context = self._read()

    def reload(self) -> None:
        """Read the files again, for connections from now on.

        Raises:
            ConfigurationError: they cannot be used; the former certificate stays in use.
        """
        self.context = self._read()

    def _read(self) -> ssl.SSLContext:
        """Make a context of the files, TLS 1.2 or newer as in Python's defaults for servers."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        try:
            # Without an answer to the question for a passphrase, OpenSSL would ask the terminal.
            context.load_cert_chain(self._chain, self._key, password=_no_passphrase)
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"GATEWAY_TLS_CERT_FILE ({self._chain}) and GATEWAY_TLS_KEY_FILE ({self._key}) are "
                f"not a certificate chain and its key in PEM ({error.reason or 'not PEM'})."
            ) from None
        except OSError as error:
            raise ConfigurationError(
                f"GATEWAY_TLS_CERT_FILE ({self._chain}) or GATEWAY_TLS_KEY_FILE ({self._key}) "
                f"cannot be read: {error.strerror}."
            ) from None
        except _NeedsPassphrase:
            raise ConfigurationError(
                f"GATEWAY_TLS_KEY_FILE ({self._key}) needs a passphrase. Store it without one, "
                "readable by the gateway's user alone."
            ) from None
        return context


def read_or_keep(read: Callable[[], object]) -> bool:
    """Read a certificate again, and return True; if it is wrong, log why, and return False."""
    try:
        read()
    except ConfigurationError as error:
        log.error("tls_certificate_refused", error=str(error))  # noqa: TRY400 - the words say it
        return False
    log.info("tls_certificate_read")
    return True


class _NeedsPassphrase(Exception):
    """Raised in OpenSSL's callback: the key is encrypted."""


def _no_passphrase() -> str:
    raise _NeedsPassphrase


async def start_tls(
    transport: asyncio.Transport,
    protocol: asyncio.Protocol,
    context: ssl.SSLContext,
    early: list[bytes],
    seconds: float,
) -> asyncio.Transport:
    """Begin TLS as the server on a connection that was just accepted; return its transport.

    `early` holds the bytes that arrived so far, and is emptied: uvloop reads before a protocol can
    stop it. What `protocol` receives before this returns was sent by TLS.

    Raises:
        OSError: the handshake failed, or took longer than `seconds`.
    """
    loop = asyncio.get_running_loop()
    starting = loop.create_task(
        loop.start_tls(
            transport,
            protocol,
            context,
            server_side=True,
            ssl_handshake_timeout=seconds,
            ssl_shutdown_timeout=SHUTDOWN_SECONDS,
        )
    )
    await asyncio.sleep(0)  # it begins: reading is paused, and TLS gets what is read from now on
    await asyncio.sleep(0)  # TLS is ready, and nothing was read since
    handshake = transport.get_protocol()
    for data in early:
        _pass_on(data, handshake)
    early.clear()
    secured = await starting
    if secured is None:
        raise ConnectionResetError
    return secured


@runtime_checkable
class _Buffered(Protocol):
    """The part of `asyncio.BufferedProtocol` that uvloop's class has too, without being one."""

    def get_buffer(self, size: int, /) -> memoryview: ...

    def buffer_updated(self, count: int, /) -> None: ...


def _pass_on(data: bytes, receiver: asyncio.BaseProtocol) -> None:
    if not isinstance(receiver, _Buffered):
        raise TypeError(f"{type(receiver).__name__} takes no data by a buffer.")
    view = memoryview(data)
    while view:
        buffer = memoryview(receiver.get_buffer(len(view)))
        count = min(len(buffer), len(view))
        buffer[:count] = view[:count]
        receiver.buffer_updated(count)
        view = view[count:]
