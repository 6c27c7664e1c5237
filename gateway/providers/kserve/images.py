"""Calls of diffusers on KServe over pooled connections: one image a call, no retries.

A model that was scaled to zero takes minutes to answer: connecting is quick, reading is long.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from urllib.parse import quote

import structlog
from yarl import URL

from gateway.catalog.declared import Host
from gateway.domain import ImageRequest, PartialSink, SecretText
from gateway.image_models import Model
from gateway.image_parameters import MAX_SEED
from gateway.provider_answers import ProviderAnswer
from gateway.providers.base import (
    CredentialState,
    ProviderFailure,
    interrupted,
)
from gateway.providers.connections import (
    ProviderConnections,
    Sending,
    new_sending,
    note_interruption,
    user_agent,
)
from gateway.providers.exchange import OK, exchange
from gateway.providers.host_errors import redact, refused
from gateway.providers.kserve.answers import read_answer, says_ready
from gateway.providers.kserve.request import encode_request, path_of, wording_of
from gateway.providers.several import make_all
from gateway.request_record import current

TEST_TIMEOUT_SECONDS = 10.0
MICROSECONDS = 1_000_000
LIMITED = 429
REFUSED_KEY_STATUSES = frozenset({401, 403})
log = structlog.get_logger(__name__)


class KServeImages:
    """A host of kind `kserve`, constructed in a running event loop."""

    def __init__(
        self,
        connections: ProviderConnections,
        host: Host,
        *,
        read_timeout_seconds: float | None,
        max_answer_bytes: int,
    ) -> None:
        self._connections = connections
        self._host = host
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

        Each has a seed of its own: the one that was asked for and the following, or a random one.

        Raises:
            ProviderFailure: no call returned an image.
        """
        del partials  # diffusers servers have none
        first = request.seed
        if first is None:
            first = random.randrange(MAX_SEED)  # noqa: S311 - of an image, not a secret
        seeds = [(first + number) % (MAX_SEED + 1) for number in range(request.n)]
        contents = await asyncio.to_thread(self._encode, request, seeds)
        calls = [
            self._buy(request, seed, content, credential)
            for seed, content in zip(seeds, contents, strict=True)
        ]
        if len(calls) == 1:
            return await calls[0]
        return await make_all(calls)

    def _encode(self, request: ImageRequest, seeds: Sequence[int]) -> list[bytes]:
        """Encode the calls one after another: they read the same input files."""
        protocol = self._host.protocol
        return [encode_request(request, protocol=protocol, seed=seed) for seed in seeds]

    async def _buy(
        self, request: ImageRequest, seed: int, content: bytes, credential: SecretText
    ) -> ProviderAnswer:
        """Make one call.

        Raises:
            ProviderFailure: it returned no image.
        """
        sending = new_sending()
        started = time.perf_counter()
        try:
            status, headers, body = await self._exchange(
                "POST",
                path_of(wording_of(request), self._host.protocol),
                credential,
                sending,
                content=content,
                seconds=self._seconds(request.model),
            )
            elapsed = time.perf_counter() - started
            if status != OK:
                raise refused(status, headers, body)
            answer = await asyncio.to_thread(
                read_answer, body, request, seed=seed, reply=sending.reply
            )
        except ProviderFailure as failure:
            failure.reply = failure.reply or sending.reply
            redact(failure, credential)
            raise
        _note_size(request, answer)
        # The reservation holds the time-out: the clock of one may run on for the other's tick.
        billed = min(elapsed, request.model.read_timeout_seconds)
        return replace(
            answer, created=int(time.time()), microseconds=int(billed * MICROSECONDS) or 1
        )

    def _seconds(self, model: Model) -> float:
        """The longest time of a call, which the price by the second is reserved for."""
        own = float(model.read_timeout_seconds)
        return own if self._read_timeout_seconds is None else min(own, self._read_timeout_seconds)

    async def _exchange(
        self,
        method: str,
        path: str,
        credential: SecretText,
        sending: Sending,
        *,
        content: bytes | None,
        seconds: float,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send a request; return the status, the headers and the bounded body.

        Raises:
            ProviderFailure: no answer within the time, or one that broke off or is too long.
        """
        try:
            async with asyncio.timeout(seconds):
                return await exchange(
                    self._connections,
                    method,
                    URL(self._host.base_url + path, encoded=True),
                    sending,
                    headers=self._headers(credential, has_body=content is not None),
                    content=content,
                    read_seconds=seconds,
                    max_answer_bytes=self._max_answer_bytes,
                )
        except TimeoutError as error:
            note_interruption(error, sending)
            raise interrupted(sent=sending.had_connection) from None

    def _headers(self, credential: SecretText, *, has_body: bool) -> dict[str, str]:
        headers = {"Accept": "application/json, image/*", "User-Agent": user_agent()}
        if has_body:
            headers["Content-Type"] = "application/json"
        if credential.reveal():
            headers["Authorization"] = f"Bearer {credential.reveal()}"
        if self._host.host_header is not None:
            headers["Host"] = self._host.host_header
        if (trace := current().trace) is not None:
            headers["traceparent"] = trace.traceparent()
        return headers

    async def shutdown_dates(self, credential: SecretText) -> Mapping[str, date]:
        """Return nothing: an operator's host names no dates."""
        del credential
        return {}

    async def test_credential(self, credential: SecretText) -> CredentialState:
        """Test a credential with a question that runs no model; its answer is ignored."""
        path = "/v2/health/ready" if self._host.protocol == "v2" else "/v1/models"
        status, _ = await self._ask(path, credential)
        if status in {OK, LIMITED}:
            return CredentialState.VALID
        if status in REFUSED_KEY_STATUSES:
            return CredentialState.INVALID
        return CredentialState.UNREACHABLE

    async def is_ready(self, model: Model, credential: SecretText) -> bool:
        """Ask the host if the model is loaded; no model is run."""
        name = model.id if model.wording is None else model.wording.name
        path = f"/v1/models/{quote(name, safe='')}"
        if self._host.protocol == "v2":
            path = f"{path.replace('/v1/', '/v2/', 1)}/ready"
        status, body = await self._ask(path, credential)
        return status == OK and says_ready(body)

    async def _ask(self, path: str, credential: SecretText) -> tuple[int | None, bytes]:
        try:
            status, _, body = await self._exchange(
                "GET",
                path,
                credential,
                new_sending(),
                content=None,
                seconds=TEST_TIMEOUT_SECONDS,
            )
        except ProviderFailure as failure:
            log.info("host_not_asked", host=self._host.name, reason=failure.reason)
            return None, b""
        return status, body


def _note_size(request: ImageRequest, answer: ProviderAnswer) -> None:
    """Log an image of another size than was asked for; the answer names the real one."""
    asked = wording_of(request).default_size if request.size in {None, "auto"} else request.size
    if answer.size != asked:
        log.warning("image_size_differs", model=request.model.id, asked=asked, made=answer.size)
