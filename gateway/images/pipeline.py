"""The only way an image is made: hold → call → store and settle. REST and MCP translate around it.

    generate ─ admission ─► owned task: price, credential, quote ─► reserve (commit)
                                        ─► provider call, no connection held
                                        ─► store, and settle (commit) ─► answer

From the hold on, everything runs in a task that belongs to the process: a client that leaves
cannot stop a call that is being paid for.
"""

import asyncio
import binascii
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn
from uuid import UUID

import pybase64
import structlog

from gateway import telemetry
from gateway.billing import quotes
from gateway.billing.prices import Prices
from gateway.billing.reservations import (
    ReservationRequest,
    Reservations,
    Settlement,
    StoredFile,
)
from gateway.db.engine import DatabaseUnavailable
from gateway.domain import (
    Caller,
    CostStatus,
    Generation,
    ImageRequest,
    Outcome,
    ProviderAnswer,
    Quote,
    SecretText,
    StoredImage,
    new_id,
)
from gateway.errors import CredentialUnreadable, OutcomeUnknown, StorageFailed, Unavailable
from gateway.images.failures import client_error
from gateway.images.links import LinkSigner
from gateway.images.storage import MEDIA_TYPES, ImageStore, image_path, new_image_id
from gateway.money import NanoUsd
from gateway.providers.base import ImageProvider, ProviderFailure, Reason
from gateway.tenancy.credentials import CredentialChoice, Credentials

SANDBOX: Literal["sandbox"] = "sandbox"
STORE_TIMEOUT_SECONDS = 60.0
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PipelineLimits:
    """What bounds the pipeline; see Settings for the meaning of each."""

    max_concurrent_generations: int
    settle_wait_seconds: float
    hold_margin_seconds: int
    image_ttl_seconds: int
    read_timeout_seconds: float | None


@dataclass(frozen=True, slots=True)
class _Paid:
    """One call that holds money."""

    id: UUID
    caller: Caller
    request: ImageRequest
    quote: Quote
    provider: str
    credential: CredentialChoice


class Pipeline:
    """Makes images for callers; owns the paid calls that are running."""

    def __init__(
        self,
        *,
        prices: Prices,
        credentials: Credentials,
        reservations: Reservations,
        providers: Mapping[str, ImageProvider],
        store: ImageStore,
        links: LinkSigner,
        limits: PipelineLimits,
    ) -> None:
        self._prices = prices
        self._credentials = credentials
        self._reservations = reservations
        self._providers = providers
        self._store = store
        self._links = links
        self._limits = limits
        self._running: set[asyncio.Task[Generation]] = set()
        self._settling: set[asyncio.Task[str]] = set()
        self._dispatched: set[UUID] = set()
        self._draining = False

    async def generate(self, caller: Caller, request: ImageRequest) -> Generation:
        """Make the images of a checked request.

        A caller that is cancelled stops waiting; the call goes on and is settled.

        Raises:
            Unavailable: too many at once, shutting down, no credential, no price, no database.
            BudgetExceeded: a budget is short; nothing was bought.
            GatewayError: what the provider's failure means for the client.
        """
        if self._draining:
            raise Unavailable("This gateway is shutting down. Try again.", retry_after_seconds=1)
        if len(self._running) >= self._limits.max_concurrent_generations:
            raise Unavailable("Too many images are being made. Try again.", retry_after_seconds=1)
        task = asyncio.create_task(self._generate(caller, request))
        self._running.add(task)
        telemetry.generations_in_flight.inc()
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise OutcomeUnknown(
                    "The gateway is shutting down and could not wait for this call any longer. "
                    "Its cost will stand in the usage report once it is known."
                ) from None
            raise

    @property
    def draining(self) -> bool:
        """Whether no new work is taken any more."""
        return self._draining

    async def quote(self, request: ImageRequest) -> Quote:
        """What `request` can cost at most; nothing is held or bought."""
        return quotes.quote(request, await self._prices.current(request.model.priced_as))

    async def drain(self, seconds: float) -> None:
        """Take no new work, let paid calls finish for `seconds`, mark the rest as unknown."""
        self._draining = True
        if self._running:
            log.info("draining", calls=len(self._running), seconds=seconds)
            await asyncio.wait(self._running, timeout=seconds)
        for reservation_id in list(self._dispatched):
            self._settle_soon(Settlement(reservation_id, Outcome.AMBIGUOUS, NanoUsd(0)))
        if self._settling:
            await asyncio.wait(self._settling, timeout=self._limits.settle_wait_seconds)
        for settling in self._settling:
            log.error("settlement_given_up", settlement=settling.get_name())
        for task in [*self._running, *self._settling]:
            task.cancel()

    def _ended(self, task: asyncio.Task[Generation]) -> None:
        self._running.discard(task)
        telemetry.generations_in_flight.dec()
        # Whoever waited has it too; this keeps an error nobody waited for from being "lost".
        if not task.cancelled():
            task.exception()

    async def _generate(self, caller: Caller, request: ImageRequest) -> Generation:
        provider = request.model.provider if caller.livemode else SANDBOX
        credential = (
            await self._credentials.choose(caller, provider)
            if caller.livemode
            else CredentialChoice(SANDBOX)
        )
        paid = _Paid(new_id(), caller, request, await self.quote(request), provider, credential)
        await self._reserve(paid)
        secret = await self._open_credential(paid)
        try:
            answer = await self._call(paid, secret)
        except ProviderFailure as failure:
            await self._fail(paid, failure)
        return await self._succeed(paid, answer)

    async def _reserve(self, paid: _Paid) -> None:
        await self._reservations.reserve(
            ReservationRequest(
                id=paid.id,
                caller=paid.caller,
                quote=paid.quote,
                operation="generation",
                requested_model=paid.request.requested_model,
                served_model=paid.request.model.id,
                provider=paid.provider,
                credential=paid.credential.owner,
                ttl_seconds=self._hold_seconds(paid.request),
            )
        )

    def _hold_seconds(self, request: ImageRequest) -> int:
        """How long a call may take altogether; its hold lives as long."""
        read_timeout = self._limits.read_timeout_seconds or request.model.read_timeout_seconds
        return int(read_timeout) + self._limits.hold_margin_seconds

    async def _call(self, paid: _Paid, secret: SecretText) -> ProviderAnswer:
        """The paid call, timed, with an outcome whatever happens."""
        self._dispatched.add(paid.id)
        started = time.perf_counter()
        outcome = Outcome.AMBIGUOUS
        try:
            # The provider's own timeout is per read: an answer that drips never meets it.
            async with asyncio.timeout(self._hold_seconds(paid.request)):
                answer = await self._try_twice(paid, secret)
        except ProviderFailure as failure:
            outcome = failure.outcome
            raise
        except TimeoutError as error:
            raise ProviderFailure(
                Outcome.AMBIGUOUS, Reason.UNKNOWN, "The provider took too long to answer."
            ) from error
        except Exception as error:  # top: a defect must not leave a paid call without its outcome
            log.exception("provider_call_defect", reservation=str(paid.id))
            raise ProviderFailure(
                Outcome.AMBIGUOUS, Reason.UNKNOWN, "The call ended in an unexpected way."
            ) from error
        else:
            outcome = Outcome.SUCCESS if answer.usage is not None else Outcome.SUCCESS_NO_USAGE
            return answer
        finally:
            elapsed = time.perf_counter() - started
            telemetry.provider_seconds.labels(paid.provider, outcome).observe(elapsed)
            self._dispatched.discard(paid.id)

    async def _try_twice(self, paid: _Paid, secret: SecretText) -> ProviderAnswer:
        """Make the call; once more where the first was surely never sent."""
        provider = self._providers[paid.provider]
        try:
            return await provider.generate(paid.request, secret)
        except ProviderFailure as failure:
            if failure.outcome is not Outcome.NOT_SENT:
                raise
        return await provider.generate(paid.request, secret)

    async def _open_credential(self, paid: _Paid) -> SecretText:
        """Open the credential, last thing before the call; without it the hold is given back."""
        if paid.credential.owner == SANDBOX:
            return SecretText("")
        try:
            return await self._credentials.open(paid.credential, paid.provider)
        except Exception as error:  # top: whatever it is, no call is made and nothing stays held
            settling = self._settle_soon(Settlement(paid.id, Outcome.NOT_SENT, NanoUsd(0)))
            await self._acknowledged(settling)
            if isinstance(error, DatabaseUnavailable):
                raise
            telemetry.alarm(
                "credential_unreadable",
                tenant=str(paid.caller.tenant_id),
                error=type(error).__name__,
            )
            raise CredentialUnreadable(
                "The stored provider key cannot be opened. Nothing was bought. Store it again with "
                f"PUT /v1/credentials/{paid.provider}; the operator has been alerted."
            ) from error

    async def _fail(self, paid: _Paid, failure: ProviderFailure) -> NoReturn:
        await self._acknowledged(
            self._settle_soon(Settlement(paid.id, failure.outcome, NanoUsd(0)))
        )
        log.info(
            "generation_failed",
            generation=str(paid.id),
            outcome=failure.outcome,
            reason=failure.reason,
            tenant=str(paid.caller.tenant_id),
        )
        raise client_error(
            failure,
            house_credential=paid.credential.owner == "house",
            model=paid.request.model.id,
        ) from failure

    async def _succeed(self, paid: _Paid, answer: ProviderAnswer) -> Generation:
        cost_nano, status, outcome = paid.quote.amount_nano, CostStatus.ESTIMATED, Outcome.SUCCESS
        if answer.usage is None:
            outcome = Outcome.SUCCESS_NO_USAGE
            telemetry.alarm("usage_missing", generation=str(paid.id), model=paid.request.model.id)
        else:
            cost_nano = quotes.cost(answer.usage, paid.quote.price)
            status = CostStatus.ACTUAL
        decoded = self._decode(paid, answer)
        # At the same time: the money must not wait for a slow store, nor the answer for both.
        settling = self._settle_soon(
            Settlement(
                paid.id,
                outcome,
                cost_nano,
                images=len(answer.images),
                usage=answer.usage,
                stored=tuple(file for file, _ in decoded),
            )
        )
        images = await self._store_all(paid, answer, decoded)
        settled = await self._acknowledged(settling)
        telemetry.cost_nano_usd_total.labels(
            paid.provider, paid.request.model.id, str(paid.caller.livemode).lower()
        ).inc(cost_nano)
        if paid.request.response_format == "url" and images[0].url is None:
            raise StorageFailed(
                f"The image was made and its cost recorded as generation {paid.id}, but it could "
                "not be stored, so there is no link to it. Ask for response_format=b64_json, "
                "which needs no storage."
            )
        return Generation(
            id=paid.id,
            request=paid.request,
            answer=answer,
            images=images,
            cost_nano=cost_nano,
            cost_status=status if settled else CostStatus.PENDING,
        )

    def _decode(self, paid: _Paid, answer: ProviderAnswer) -> list[tuple[StoredFile, bytes]]:
        """The images' bytes and where they will lie; nothing where one of them is no base64."""
        try:
            contents = [pybase64.b64decode(image, validate=True) for image in answer.images]
        except binascii.Error:
            return []
        decoded = []
        for content in contents:
            image_id = new_image_id()
            file = StoredFile(
                id=image_id,
                path=image_path(paid.caller.tenant_id, image_id, answer.output_format),
                media_type=MEDIA_TYPES[answer.output_format],
                size_bytes=len(content),
                ttl_seconds=self._limits.image_ttl_seconds,
            )
            decoded.append((file, content))
        return decoded

    async def _store_all(
        self, paid: _Paid, answer: ProviderAnswer, decoded: list[tuple[StoredFile, bytes]]
    ) -> tuple[StoredImage, ...]:
        """Store every image, or give none a link: an answer whose store failed has its bytes."""
        failed = "no base64" if not decoded else await self._put_all(decoded)
        if failed:
            telemetry.alarm("storage_failed", generation=str(paid.id), error=failed)
            media_type = MEDIA_TYPES[answer.output_format]
            return tuple(
                StoredImage(new_image_id(), encoded, None, media_type) for encoded in answer.images
            )
        expires_at = int(time.time()) + self._limits.image_ttl_seconds
        return tuple(
            StoredImage(
                file.id, encoded, self._links.sign(file.id, file.path, expires_at), file.media_type
            )
            for (file, _), encoded in zip(decoded, answer.images, strict=True)
        )

    async def _put_all(self, decoded: list[tuple[StoredFile, bytes]]) -> str | None:
        """Store every file; the name of the error where one failed."""
        try:
            async with asyncio.timeout(STORE_TIMEOUT_SECONDS):
                await asyncio.gather(*(self._store.put(f.path, content) for f, content in decoded))
        except (StorageFailed, TimeoutError) as error:
            return type(error).__name__
        return None

    async def _acknowledged(self, settling: asyncio.Task[str]) -> bool:
        """Whether Postgres acknowledged a settlement while the client could wait for it."""
        done, _ = await asyncio.wait({settling}, timeout=self._limits.settle_wait_seconds)
        return bool(done) and settling.exception() is None

    def _settle_soon(self, settlement: Settlement) -> asyncio.Task[str]:
        # The name is what the log shows of a settlement that a shutdown leaves undone.
        task = asyncio.create_task(self._reservations.settle(settlement), name=repr(settlement))
        self._settling.add(task)
        task.add_done_callback(self._settled)
        return task

    def _settled(self, task: asyncio.Task[str]) -> None:
        """Report a settlement that Postgres refuses outright: a defect.

        It must not take the image away. The hold stays, becomes unknown at its deadline, and is
        posted as an estimate.
        """
        self._settling.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            telemetry.alarm("settle_refused", error=type(error).__name__)
            log.error("settle_refused", exc_info=error)
