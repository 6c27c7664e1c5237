"""Calls of Gemini's API over pooled connections: one image a call, one key a call, no retries."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import date

import structlog
from yarl import URL

from gateway.domain import ImageRequest, PartialSink, SecretText
from gateway.provider_answers import ProviderAnswer
from gateway.providers.base import CredentialState, ProviderFailure, interrupted
from gateway.providers.connections import (
    ProviderConnections,
    Sending,
    new_sending,
    user_agent,
)
from gateway.providers.exchange import OK, exchange
from gateway.providers.gemini.answers import read_answer, read_model_names
from gateway.providers.gemini.errors import is_invalid_key, refused
from gateway.providers.gemini.request import encode_request
from gateway.providers.several import make_all
from gateway.request_record import current

VERSION = "v1beta"
TEST_TIMEOUT_SECONDS = 10.0
MOST_MODELS = 1000
"""The longest page of Google's list."""
BAD_REQUEST, LIMITED = 400, 429
REFUSED_KEY_STATUSES = frozenset({401, 403})
log = structlog.get_logger(__name__)


class GeminiImages:
    """The provider `gemini`, constructed in a running event loop."""

    def __init__(
        self,
        connections: ProviderConnections,
        *,
        base_url: str,
        read_timeout_seconds: float | None,
        max_answer_bytes: int,
    ) -> None:
        self._connections = connections
        self._models_url = URL(f"{base_url.rstrip('/')}/{VERSION}/models")
        self._read_timeout_seconds = read_timeout_seconds
        self._max_answer_bytes = max_answer_bytes

    async def close(self) -> None:
        """Close connections."""
        await self._connections.close()

    async def generate(
        self,
        request: ImageRequest,
        credential: SecretText,
        partials: PartialSink | None = None,
    ) -> ProviderAnswer:
        """Buy the images of `request`, each in a call of its own, all at once.

        Raises:
            ProviderFailure: no call returned an image.
        """
        del partials  # Gemini has none
        content = await asyncio.to_thread(encode_request, request)
        calls = [self._buy(request, content, credential) for _ in range(request.n)]
        if len(calls) == 1:
            return await calls[0]
        return await make_all(calls)

    async def _buy(
        self, request: ImageRequest, content: bytes, credential: SecretText
    ) -> ProviderAnswer:
        """Make one call.

        Raises:
            ProviderFailure: it returned no image.
        """
        sending = new_sending()
        headers = {"Content-Type": "application/json"}
        if (trace := current().trace) is not None:
            headers["traceparent"] = trace.traceparent()
        try:
            status, body = await self._exchange(
                "POST",
                self._models_url / f"{request.model.id}:generateContent",
                credential,
                sending,
                headers=headers,
                content=content,
                read_seconds=self._read_timeout_seconds or request.model.read_timeout_seconds,
            )
            if status != OK:
                raise refused(status, body)
            answer = read_answer(body, request, sending.reply)
            return replace(answer, created=int(time.time()))  # Gemini names no time
        except ProviderFailure as failure:
            failure.reply = failure.reply or sending.reply
            raise

    async def _exchange(
        self,
        method: str,
        url: URL,
        credential: SecretText,
        sending: Sending,
        *,
        headers: dict[str, str],
        content: bytes | None,
        read_seconds: float,
    ) -> tuple[int, bytes]:
        """Send a request; return the status and the bounded body.

        Raises:
            ProviderFailure: no answer, or one that broke off or is too long.
        """
        # In a header, not in the address, which others log.
        headers |= {
            "x-goog-api-key": credential.reveal(),
            "Accept": "application/json",
            "User-Agent": user_agent(),
        }
        status, _, body = await exchange(
            self._connections,
            method,
            url,
            sending,
            headers=headers,
            content=content,
            read_seconds=read_seconds,
            max_answer_bytes=self._max_answer_bytes,
        )
        return status, body

    async def shutdown_dates(self, credential: SecretText) -> Mapping[str, date]:
        """Return nothing: Google's list of models names no dates."""
        del credential
        return {}

    async def listed_models(self, credential: SecretText) -> frozenset[str]:
        """Fetch the names of the models that Google lists, which is free.

        Raises:
            ProviderFailure: no answer, or a malformed one.
        """
        try:
            status, body = await self._list(credential)
        except TimeoutError:
            raise interrupted(sent=True) from None
        if status != OK:
            raise refused(status, body)
        return read_model_names(body)

    async def _list(self, credential: SecretText) -> tuple[int, bytes]:
        async with asyncio.timeout(TEST_TIMEOUT_SECONDS):
            return await self._exchange(
                "GET",
                self._models_url % {"pageSize": MOST_MODELS},
                credential,
                new_sending(),
                headers={},
                content=None,
                read_seconds=TEST_TIMEOUT_SECONDS,
            )

    async def test_credential(self, credential: SecretText) -> CredentialState:
        """Test a credential with the list of models, which is free; its content is ignored."""
        try:
            status, body = await self._list(credential)
        except (ProviderFailure, TimeoutError) as error:
            log.info("credential_not_tested", error=type(error).__name__)
            return CredentialState.UNREACHABLE
        if status in {OK, LIMITED}:
            return CredentialState.VALID
        if status in REFUSED_KEY_STATUSES or (status == BAD_REQUEST and is_invalid_key(body)):
            return CredentialState.INVALID
        return CredentialState.UNREACHABLE
