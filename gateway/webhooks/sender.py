"""One send of a delivery: guarded target, bounded time, response body unread."""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp

from gateway.net.outbound import (
    AddressRefused,
    Resolver,
    SocketFactory,
    SystemResolver,
    open_session,
)
from gateway.webhooks.targets import DeliveryFailure, TargetRefused, guard, read_target

SUCCESS = range(200, 300)
REDIRECTS = range(300, 400)


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """The result of one attempt; `failure` is None if it was delivered."""

    status: int | None
    failure: DeliveryFailure | None


class Sender:
    """The HTTP client for endpoints. Must be created in a running event loop.

    `resolver`, `ssl_context` and `open_socket` default to the system's own. None of them can bypass
    the guard: each address is checked after the resolver and before the socket.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float,
        allow_private: bool,
        resolver: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
        open_socket: SocketFactory | None = None,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._allow_private = allow_private
        self._system_resolver = SystemResolver()
        self._session = open_session(
            guard(allow_private=allow_private),
            resolver or self._system_resolver,
            open_socket=open_socket,
            ssl_context=ssl_context,
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> DeliveryAttempt:
        """Post `body`. Redirects are not followed; only the status of the answer is read."""
        try:
            address = read_target(url, allow_private=self._allow_private)
            async with (
                asyncio.timeout(self._timeout_seconds),
                self._session.post(
                    address, data=body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                return DeliveryAttempt(answer.status, _failure_of(answer.status))
        except TargetRefused as refused:
            return DeliveryAttempt(None, refused.reason)
        except TimeoutError:
            return DeliveryAttempt(None, DeliveryFailure.TIMEOUT)
        except aiohttp.ClientError as error:
            # Only the type is kept: the error's text quotes the whole address.
            return DeliveryAttempt(None, _classify(error))

    async def close(self) -> None:
        """Close connections."""
        await self._session.close()
        self._system_resolver.close()


def _failure_of(status: int) -> DeliveryFailure | None:
    if status in SUCCESS:
        return None
    if status in REDIRECTS:
        return DeliveryFailure.REDIRECT
    return DeliveryFailure.GONE if status == HTTPStatus.GONE else DeliveryFailure.BAD_STATUS


def _classify(error: aiohttp.ClientError) -> DeliveryFailure:
    if isinstance(error, aiohttp.ClientSSLError):
        return DeliveryFailure.BAD_CERTIFICATE
    if isinstance(error, aiohttp.ClientConnectorError):
        is_refused = isinstance(error.os_error, AddressRefused)
        return DeliveryFailure.PRIVATE_ADDRESS if is_refused else DeliveryFailure.UNREACHABLE
    return DeliveryFailure.BROKEN_OFF
