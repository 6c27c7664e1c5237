"""The only way an image is made: hold → call → store and settle. REST and MCP translate around it.

    generate ─ admission ─► owned task: continuity, price, credential, quote ─► reserve (commit)
                                        ─► provider call, no connection held
                                        ─► finish ─► store, and settle (commit) ─► answer

From the hold on, everything runs in a task that belongs to the process: a client that leaves
cannot stop a call that is being paid for.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NoReturn
from uuid import UUID

import structlog

from gateway import telemetry
from gateway.billing import quotes
from gateway.billing.prices import Prices
from gateway.billing.reservations import (
    ReservationRequest,
    Reservations,
    Settlement,
)
from gateway.db.engine import DatabaseUnavailable
from gateway.domain import (
    Caller,
    CostStatus,
    Generation,
    ImageRequest,
    Outcome,
    PartialSink,
    ProviderAnswer,
    Quote,
    SecretText,
    StoredImage,
    Usage,
    new_id,
)
from gateway.errors import (
    CredentialUnreadable,
    ImageUnfinished,
    OutcomeUnknown,
    StorageFailed,
    Unavailable,
)
from gateway.images import continuity
from gateway.images.catalog import Catalog
from gateway.images.failures import client_error
from gateway.images.results import Results
from gateway.money import NanoUsd
from gateway.providers.base import ImageProvider, ProviderFailure, Reason
from gateway.tenancy.credentials import CredentialChoice, Credentials

SANDBOX: Literal["sandbox"] = "sandbox"
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PipelineLimits:
    """What bounds the pipeline; see Settings for the meaning of each."""

    max_concurrent_generations: int
    settle_wait_seconds: float
    hold_margin_seconds: int
    read_timeout_seconds: float | None


@dataclass(frozen=True, slots=True)
class _Paid:
    """One call that holds money: what was asked for, and what is bought to answer it."""

    id: UUID
    caller: Caller
    request: ImageRequest
    served: ImageRequest
    quote: Quote
    provider: str
    credential: CredentialChoice


class Pipeline:
    """Makes images for callers; owns the paid calls that are running."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        prices: Prices,
        credentials: Credentials,
        reservations: Reservations,
        providers: Mapping[str, ImageProvider],
        results: Results,
        limits: PipelineLimits,
    ) -> None:
        self._catalog = catalog
        self._prices = prices
        self._credentials = credentials
        self._reservations = reservations
        self._providers = providers
        self._results = results
        self._limits = limits
        self._running: set[asyncio.Task[Generation]] = set()
        self._settling: set[asyncio.Task[str]] = set()
        # How each call that holds money is to be settled should it end here and now.
        self._unsettled: dict[UUID, Settlement] = {}
        self._draining = False

    async def generate(
        self, caller: Caller, request: ImageRequest, partials: PartialSink | None = None
    ) -> Generation:
        """Make the images of a checked request; its input files are closed whatever happens.

        A caller that is cancelled stops waiting; the call goes on and is settled. `partials` takes
        the images on their way, where the request asks for a stream.

        Raises:
            Unavailable: too many at once, shutting down, no credential, no price, no database.
            BudgetExceeded: a budget is short; nothing was bought.
            GatewayError: what the provider's failure means for the client.
        """
        try:
            self._admit()
        except Unavailable:
            request.close()
            raise
        task = asyncio.create_task(self._generate(caller, request, partials))
        task.add_done_callback(lambda _: request.close())
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

    def serve(self, caller: Caller, request: ImageRequest) -> ImageRequest:
        """What is bought to answer `request`: itself, or in a living successor's words."""
        serving = self._catalog.serving(request.model, livemode=caller.livemode)
        return continuity.serve(request, serving)

    @property
    def draining(self) -> bool:
        """Whether no new work is taken any more."""
        return self._draining

    async def quote(self, served: ImageRequest) -> Quote:
        """What a request as it is served can cost at most; nothing is held or bought."""
        return quotes.quote(served, await self._prices.current(served.priced_as))

    async def drain(self, seconds: float) -> None:
        """Take no new work, let paid calls finish for `seconds`, mark the rest as unknown."""
        self._draining = True
        if self._running:
            log.info("draining", calls=len(self._running), seconds=seconds)
            await asyncio.wait(self._running, timeout=seconds)
        for reservation_id in list(self._unsettled):
            self._settle_as_known(reservation_id)
        if self._settling:
            await asyncio.wait(self._settling, timeout=self._limits.settle_wait_seconds)
        for settling in self._settling:
            log.error("settlement_given_up", settlement=settling.get_name())
        for task in [*self._running, *self._settling]:
            task.cancel()

    def _admit(self) -> None:
        if self._draining:
            raise Unavailable("This gateway is shutting down. Try again.", retry_after_seconds=1)
        if len(self._running) >= self._limits.max_concurrent_generations:
            raise Unavailable("Too many images are being made. Try again.", retry_after_seconds=1)

    def _ended(self, task: asyncio.Task[Generation]) -> None:
        self._running.discard(task)
        telemetry.generations_in_flight.dec()
        # Whoever waited has it too; this keeps an error nobody waited for from being "lost".
        if not task.cancelled():
            task.exception()

    async def _generate(
        self, caller: Caller, request: ImageRequest, partials: PartialSink | None
    ) -> Generation:
        served = self.serve(caller, request)
        provider = served.model.provider if caller.livemode else SANDBOX
        credential = (
            await self._credentials.choose(caller, provider)
            if caller.livemode
            else CredentialChoice(SANDBOX)
        )
        quote = await self.quote(served)
        paid = _Paid(new_id(), caller, request, served, quote, provider, credential)
        await self._reserve(paid)
        secret = await self._open_credential(paid)
        try:
            answer = await self._call(paid, secret, partials)
            return await self._succeed(paid, answer)
        except ProviderFailure as failure:
            await self._fail(paid, failure)
        finally:
            # Whatever broke on the way: what is known of the cost is written down.
            self._settle_as_known(paid.id)

    async def _reserve(self, paid: _Paid) -> None:
        await self._reservations.reserve(
            ReservationRequest(
                id=paid.id,
                caller=paid.caller,
                quote=paid.quote,
                operation=paid.request.operation,
                requested_model=paid.request.requested_model,
                served_model=paid.served.model.id,
                provider=paid.provider,
                credential=paid.credential.owner,
                ttl_seconds=self._hold_seconds(paid.served),
            )
        )

    def _hold_seconds(self, request: ImageRequest) -> int:
        """How long a call may take altogether; its hold lives as long."""
        read_timeout = self._limits.read_timeout_seconds or request.model.read_timeout_seconds
        return int(read_timeout) + self._limits.hold_margin_seconds

    async def _call(
        self, paid: _Paid, secret: SecretText, partials: PartialSink | None
    ) -> ProviderAnswer:
        """The paid call, timed, with an outcome whatever happens."""
        self._unsettled[paid.id] = Settlement(paid.id, Outcome.AMBIGUOUS, NanoUsd(0))
        started = time.perf_counter()
        outcome = Outcome.AMBIGUOUS
        try:
            # The provider's own timeout is per read: an answer that drips never meets it.
            async with asyncio.timeout(self._hold_seconds(paid.served)):
                answer = await self._try_twice(paid, secret, partials)
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

    async def _try_twice(
        self, paid: _Paid, secret: SecretText, partials: PartialSink | None
    ) -> ProviderAnswer:
        """Make the call; once more where the first was surely never sent."""
        provider = self._providers[paid.provider]
        try:
            return await provider.generate(paid.served, secret, partials)
        except ProviderFailure as failure:
            if failure.outcome is not Outcome.NOT_SENT:
                raise
        return await provider.generate(paid.served, secret, partials)

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
        cost_nano = None
        if failure.outcome is Outcome.SUCCESS:  # charged, and no image that could be read
            cost_nano = self._cost(paid, failure.usage, images=paid.served.n)
        amount_nano = NanoUsd(0) if cost_nano is None else cost_nano
        await self._acknowledged(
            self._settle_soon(
                Settlement(paid.id, failure.outcome, amount_nano, usage=failure.usage)
            )
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
            model=paid.served.model.id,
        ) from failure

    async def _succeed(self, paid: _Paid, answer: ProviderAnswer) -> Generation:
        status, outcome = CostStatus.ACTUAL, Outcome.SUCCESS
        cost_nano = self._cost(paid, answer.usage, images=len(answer.images))
        if cost_nano is None:
            status, outcome = CostStatus.ESTIMATED, Outcome.SUCCESS_NO_USAGE
            cost_nano = paid.quote.amount_nano
            telemetry.alarm("usage_missing", generation=str(paid.id), model=paid.served.model.id)
        settlement = Settlement(
            paid.id, outcome, cost_nano, images=len(answer.images), usage=answer.usage
        )
        self._unsettled[paid.id] = settlement
        try:
            finish = continuity.finish(paid.request, paid.served)
            answer = await self._results.finish(answer, finish)
        except ImageUnfinished as error:
            telemetry.alarm("image_unfinished", generation=str(paid.id), error=error.message)
            kept, _ = await self._keep(paid, answer, settlement)
            ids = ", ".join(image.id for image in kept if image.url is not None)
            raise ImageUnfinished(
                f"{error.message} As it was made, it is kept as {ids}." if ids else error.message
            ) from error
        images, settled = await self._keep(paid, answer, settlement)
        if paid.request.response_format == "url" and images[0].url is None:
            raise StorageFailed(
                f"The image was made and its cost recorded as generation {paid.id}, but it could "
                "not be stored, so there is no link to it. Ask for response_format=b64_json, "
                "which needs no storage."
            )
        return Generation(
            id=paid.id,
            request=paid.request,
            served=paid.served,
            answer=answer,
            images=images,
            cost_nano=cost_nano,
            cost_status=status if settled else CostStatus.PENDING,
        )

    def _cost(self, paid: _Paid, usage: Usage | None, *, images: int) -> NanoUsd | None:
        """What a charged call did cost, counted in the metrics; None where nobody has said."""
        cost_nano = quotes.cost_of_call(paid.served, paid.quote.price, usage=usage, images=images)
        telemetry.cost_nano_usd_total.labels(
            paid.provider, paid.served.model.id, str(paid.caller.livemode).lower()
        ).inc(paid.quote.amount_nano if cost_nano is None else cost_nano)
        return cost_nano

    async def _keep(
        self, paid: _Paid, answer: ProviderAnswer, settlement: Settlement
    ) -> tuple[tuple[StoredImage, ...], bool]:
        """Store and settle; returns the images, and whether Postgres acknowledged in time.

        At the same time: the money must not wait for a slow store, nor the answer for both.
        """
        files = self._results.files(paid.caller, paid.request, answer)
        settling = self._settle_soon(replace(settlement, stored=tuple(file for file, _ in files)))
        images = await self._results.store(paid.id, answer, files)
        settled = await self._acknowledged(settling)
        if settled and files and images[0].url is None:
            await self._results.forget(paid.caller, files)
        return images, settled

    async def _acknowledged(self, settling: asyncio.Task[str]) -> bool:
        """Whether Postgres acknowledged a settlement while the client could wait for it."""
        done, _ = await asyncio.wait({settling}, timeout=self._limits.settle_wait_seconds)
        return bool(done) and settling.exception() is None

    def _settle_as_known(self, reservation_id: UUID) -> None:
        settlement = self._unsettled.get(reservation_id)
        if settlement is not None:
            self._settle_soon(settlement)

    def _settle_soon(self, settlement: Settlement) -> asyncio.Task[str]:
        self._unsettled.pop(settlement.id, None)
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
