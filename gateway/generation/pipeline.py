"""The only way an image is made: hold → call → store and settle. REST and MCP translate around it.

    generate ─ admission ─► owned task: continuity, price, credential, quote
                                        ─► circuit ─► limits ─► reserve (commit)
                                        ─► provider call, no connection held
                                        ─► finish ─► store, and settle (commit) ─► answer

From the hold on, everything runs in a task that belongs to the process: a client that leaves
cannot stop a call that is being paid for.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal, NoReturn
from uuid import UUID

import structlog

from gateway import telemetry
from gateway.billing import quotes
from gateway.billing.journal import Journal
from gateway.billing.prices import Prices
from gateway.billing.reservations import (
    AlreadyClaimed,
    ReservationRequest,
    Reservations,
    Settlement,
)
from gateway.catalog.loading import Catalog
from gateway.db.engine import DatabaseUnavailable, answered_within
from gateway.domain import (
    Caller,
    CostStatus,
    Generation,
    ImageRequest,
    Kept,
    Operation,
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
    GatewayError,
    ImageUnfinished,
    OutcomeUnknown,
    Unavailable,
)
from gateway.generation import continuity
from gateway.generation.failures import client_error, not_stored
from gateway.generation.idempotency import Replays, record_error, record_for, released
from gateway.generation.pipeline_limits import PipelineLimits
from gateway.generation.provider_circuits import note_failure, provider_call
from gateway.generation.results import Results
from gateway.generation.settlements import Settlements
from gateway.image_models import Choice
from gateway.limits.enforcement import Admission, AdmissionSink, Limiter
from gateway.load.circuits import Circuits, ProviderCall
from gateway.load.concurrency import Places
from gateway.load.gate import Gate, Place
from gateway.money import NanoUsd
from gateway.providers.base import ImageProvider, ProviderFailure, Reason
from gateway.request_record import current
from gateway.tenancy.credentials import CredentialChoice, Credentials

SANDBOX: Literal["sandbox"] = "sandbox"
CANCEL_SECONDS = 2.0
log = structlog.get_logger(__name__)


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
        replays: Replays,
        gate: Gate,
        circuits: Circuits,
        limiter: Limiter,
        journal: Journal | None,
        limits: PipelineLimits,
    ) -> None:
        self._catalog = catalog
        self._prices = prices
        self._credentials = credentials
        self._reservations = reservations
        self._providers = providers
        self._results = results
        self._replays = replays
        self._gate = gate
        self._circuits = circuits
        self._limiter = limiter
        self._limits = limits
        # Test calls have places of their own: they must not take those of live ones.
        self._live_places = Places(
            limits.max_concurrent_generations,
            "generations",
            most_of_one=limits.max_concurrent_generations_per_tenant,
        )
        self._test_places = Places(limits.max_concurrent_test_generations, "test generations")
        self._running: set[asyncio.Task[Generation]] = set()
        self._settlements = Settlements(
            reservations, journal, wait_seconds=limits.settle_wait_seconds
        )
        self._draining = False

    async def generate(
        self,
        caller: Caller,
        request: ImageRequest,
        partials: PartialSink | None = None,
        *,
        place: Place | None = None,
        admitted: AdmissionSink | None = None,
    ) -> Generation:
        """Make the images of a checked request; its input files are closed whatever happens.

        A caller that is cancelled stops waiting; the call goes on and is settled. `partials` takes
        the images on their way, where the request asks for a stream, and `admitted` hears before
        the first of them how the caller's limits stand. `place` is the request's inside the gate,
        left as soon as its call goes out; without one it waits for one.

        Raises:
            Unavailable: too many at once, shutting down, no credential, no price, no database.
            LimitReached, BudgetExceeded: a limit or a budget is in the way; nothing was bought.
            GatewayError: what the provider's failure means for the client.
        """
        current().requested_model = request.requested_model
        with ExitStack() as undo:
            undo.callback(request.close)
            if place is None or place.is_left:
                place = await self._gate.enter(caller.tenant_id)
            undo.callback(place.leave)
            undo.enter_context(self._room(caller).taken(caller.tenant_id))
            task = asyncio.create_task(self._generate(caller, request, place, partials, admitted))
            ending = undo.pop_all()
        current().hold()
        task.add_done_callback(lambda _: ending.close())
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

    async def is_claimed(self, caller: Caller, request: ImageRequest) -> bool:
        """Whether the request was sent before, with its key: its pictures are then not needed."""
        return await self._replays.exists(caller, request)

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
        self._gate.end_waiting()
        if self._running:
            log.info("draining", calls=len(self._running), seconds=seconds)
            await asyncio.wait(self._running, timeout=seconds)
        await self._settlements.drain()
        if not self._running:
            return
        self._settlements.leave_journal()
        for task in self._running:
            task.cancel()
        # Each hands on what it has in hand: images that are not stored yet.
        await asyncio.wait(self._running, timeout=CANCEL_SECONDS)

    def check_room(self, caller: Caller) -> None:
        """Raise `Unavailable` where a generation would not be begun now."""
        self._room(caller).check(caller.tenant_id)

    def _room(self, caller: Caller) -> Places:
        if self._draining:
            raise Unavailable("This gateway is shutting down. Try again.", retry_after_seconds=1)
        return self._live_places if caller.livemode else self._test_places

    def _ended(self, task: asyncio.Task[Generation]) -> None:
        self._running.discard(task)
        telemetry.generations_in_flight.dec()
        # Whoever waited has it too; this keeps an error nobody waited for from being "lost".
        error = None if task.cancelled() else task.exception()
        record = current()
        if isinstance(error, GatewayError):
            record.fail(error)
        record.release()

    async def _generate(
        self,
        caller: Caller,
        request: ImageRequest,
        place: Place,
        partials: PartialSink | None,
        admitted: AdmissionSink | None,
    ) -> Generation:
        replayed = await self._replays.find(caller, request, found=place.leave)
        if replayed is not None:
            return replayed
        if request.operation is not Operation.GENERATION and not request.inputs:
            raise released()
        await self._results.check(request)
        served = self.serve(caller, request)
        provider = served.model.provider if caller.livemode else SANDBOX
        credential = (
            await self._credentials.choose(caller, provider)
            if caller.livemode
            else CredentialChoice(SANDBOX)
        )
        current().buy(served.model.id, provider, credential.owner)
        quote = await self.quote(served)
        paid = _Paid(new_id(), caller, request, served, quote, provider, credential)
        house = provider if credential.owner == "house" else None
        model = served.model.id
        with provider_call(self._circuits, caller, provider, model, credential) as call:
            async with self._limiter.admit(caller, request.n, house, admitted) as admission:
                return await self._buy(paid, partials, admission, place, call)

    async def _buy(
        self,
        paid: _Paid,
        partials: PartialSink | None,
        admission: Admission,
        place: Place,
        call: ProviderCall,
    ) -> Generation:
        try:
            await self._reserve(paid)
        except AlreadyClaimed:
            return await self._replay(paid, place)
        current().generation_id = paid.id
        secret = await self._open_credential(paid)
        admission.is_sent = True
        place.leave()
        try:
            answer = await self._call(paid, secret, partials)
            call.succeeded()
            return await self._succeed(paid, answer)
        except ProviderFailure as failure:
            note_failure(call, failure)
            await self._fail(paid, failure)
        finally:
            # Whatever broke on the way: what is known of the cost is written down.
            self._settlements.end_as_known(paid.id)

    async def _replay(self, paid: _Paid, place: Place) -> Generation:
        """What came of a request with the same key that was a moment faster."""
        replayed = await self._replays.find(paid.caller, paid.request, found=place.leave)
        if replayed is None:
            raise released()
        return replayed

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
                idempotency=paid.request.idempotency,
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
        self._settlements.sent(paid.id)
        started = time.perf_counter()
        outcome, reply = Outcome.AMBIGUOUS, None
        try:
            # The provider's own timeout is per read: an answer that drips never meets it.
            async with asyncio.timeout(self._hold_seconds(paid.served)):
                answer = await self._try_twice(paid, secret, partials)
        except ProviderFailure as failure:
            outcome, reply = failure.outcome, failure.reply
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
            reply = answer.reply
            return answer
        finally:
            elapsed = time.perf_counter() - started
            current().replied(reply, elapsed)
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
            if paid.credential.sealed is None:  # the house's, for which nothing is waited
                return await self._credentials.open(paid.credential, paid.provider)
            async with answered_within(self._limits.admission_seconds):
                return await self._credentials.open(paid.credential, paid.provider)
        except Exception as error:  # top: whatever it is, no call is made and nothing stays held
            settling = self._settlements.settle(Settlement(paid.id, Outcome.NOT_SENT, NanoUsd(0)))
            await self._settlements.acknowledged(settling)
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
        error = client_error(
            failure, house_credential=paid.credential.owner == "house", model=paid.served.model.id
        )
        cost_nano, answer = None, None
        record = current()
        record.reason = failure.reason
        if failure.outcome is Outcome.SUCCESS:  # charged, and no image that could be read
            cost_nano = self._cost(paid, failure.usage, images=paid.served.n)
            answer = record_error(error) if paid.request.idempotency else None
        if failure.outcome is Outcome.AMBIGUOUS:
            record.cost(None, CostStatus.PENDING)
        else:
            record.cost(cost_nano or NanoUsd(0), CostStatus.ACTUAL)
        settlement = Settlement(
            paid.id,
            failure.outcome,
            NanoUsd(0) if cost_nano is None else cost_nano,
            usage=failure.usage,
            answer=answer,
        )
        await self._settlements.acknowledged(self._settlements.settle(settlement))
        log.info(
            "generation_failed",
            generation=str(paid.id),
            outcome=failure.outcome,
            reason=failure.reason,
            tenant=str(paid.caller.tenant_id),
        )
        raise error from failure

    async def _succeed(self, paid: _Paid, answer: ProviderAnswer) -> Generation:
        status, outcome = CostStatus.ACTUAL, Outcome.SUCCESS
        served = quotes.choice_served(paid.served, answer)
        cost_nano = self._cost(paid, answer.usage, images=len(answer.images))
        if cost_nano is None:
            status, outcome = CostStatus.ESTIMATED, Outcome.SUCCESS_NO_USAGE
            cost_nano = self._estimate(paid, served)
            telemetry.alarm("usage_missing", generation=str(paid.id), model=paid.served.model.id)
        current().cost(cost_nano, status)
        settlement = Settlement(
            paid.id,
            outcome,
            cost_nano,
            images=len(answer.images),
            usage=answer.usage,
            served=served,
        )
        self._settlements.know(settlement)
        try:
            finish = continuity.finish(paid.request, paid.served)
            answer = await self._results.finish(answer, finish)
        except ImageUnfinished as error:
            telemetry.alarm("image_unfinished", generation=str(paid.id), error=error.message)
            images, _, _ = await self._keep(paid, answer, settlement, failed=error)
            ids = ", ".join(image.id for image in images if image.url is not None)
            raise ImageUnfinished(
                f"{error.message} As it was made, it is kept as {ids}." if ids else error.message
            ) from error
        images, kept, settled = await self._keep(paid, answer, settlement)
        if paid.request.response_format == "url" and kept is not Kept.STORED:
            raise not_stored(paid.id, paid.request, images, kept)
        return Generation(
            id=paid.id,
            request=paid.request,
            served=paid.served,
            answer=answer,
            images=images,
            cost_nano=cost_nano,
            cost_status=status if settled else CostStatus.PENDING,
            kept=kept,
        )

    def _estimate(self, paid: _Paid, served: Choice | None) -> NanoUsd:
        """What a call is put at whose answer says no usage, by what was asked for or served."""
        model, quote = paid.served.model, paid.quote
        return quotes.estimate(
            quote.terms, model, quote.price, served or model.usual, at_most=quote.amount_nano
        )

    def _cost(self, paid: _Paid, usage: Usage | None, *, images: int) -> NanoUsd | None:
        """What a charged call did cost, counted in the metrics; None where nobody has said."""
        cost_nano = quotes.cost_of_call(paid.served, paid.quote.price, usage=usage, images=images)
        telemetry.cost_nano_usd_total.labels(
            paid.provider, paid.served.model.id, str(paid.caller.livemode).lower()
        ).inc(paid.quote.amount_nano if cost_nano is None else cost_nano)
        return cost_nano

    async def _keep(
        self,
        paid: _Paid,
        answer: ProviderAnswer,
        settlement: Settlement,
        *,
        failed: GatewayError | None = None,
    ) -> tuple[tuple[StoredImage, ...], Kept, bool]:
        """Store and settle; returns the images, where they are, and whether Postgres acknowledged.

        At the same time: the money must not wait for a slow store, nor the answer for both.
        """
        files = self._results.files(paid.caller, paid.request, answer)
        stored = tuple(file for file, _ in files)
        settling = self._settlements.settle(
            replace(
                settlement,
                stored=stored,
                answer=record_for(paid.caller, paid.request, answer, stored, failed),
            )
        )
        images, kept = await self._results.store(paid.id, paid.caller, paid.request, answer, files)
        settled = await self._settlements.acknowledged(settling)
        if not settled:
            current().cost_status = CostStatus.PENDING
        return images, kept, settled
