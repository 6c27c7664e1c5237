"""One paid call, from the opening of its credential to its stored and settled answer."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NoReturn
from uuid import UUID

import structlog

from gateway import telemetry, usage_metrics
from gateway.billing import quotes
from gateway.billing.settlement import CHARGED, Settlement
from gateway.config import Settings
from gateway.db.engine import DatabaseUnavailable, answered_within
from gateway.db.listed_calls import count_sent, version_served
from gateway.domain import (
    Caller,
    CostStatus,
    Generation,
    ImageRequest,
    PartialSink,
    Quote,
    SecretText,
    StorageState,
    StoredImage,
)
from gateway.errors import CredentialUnreadable, GatewayError, ImageUnfinished
from gateway.generation import continuity
from gateway.generation.failures import (
    client_error,
    is_served_elsewhere,
    kept_unfinished,
    not_stored,
)
from gateway.generation.idempotency import record_error, record_for
from gateway.generation.made_calls import check_version, listed, unanswered
from gateway.generation.provider_circuits import HOUSE, note_failure
from gateway.generation.results import Results
from gateway.generation.settlements import Settlements
from gateway.generation.traces import CallStep
from gateway.generation.vendor_limits import VendorLimits
from gateway.image_models import AutoChoice, Unit
from gateway.load.circuits import ProviderCall
from gateway.money import NanoUsd
from gateway.provider_answers import Outcome, ProviderAnswer, Usage
from gateway.providers.base import ImageProvider, ProviderFailure, Reason
from gateway.request_record import current
from gateway.tenancy.credentials import CredentialChoice, Credentials
from gateway.tracing import postgresql_step, step

SANDBOX: Literal["sandbox"] = "sandbox"
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PaidCall:
    """The call that answers a request: what is bought, from which provider, at most at what cost.

    `request` is the client's, `served` the one that is bought to answer it.
    """

    id: UUID
    caller: Caller
    request: ImageRequest
    served: ImageRequest
    quote: Quote
    provider: str
    credential: CredentialChoice


@dataclass(frozen=True, slots=True)
class Turn:
    """The place of a call among those that may serve its request.

    `has_next`: another model may be called after it. `first_error`: the error of the first call,
    where this one follows others that were not charged.
    """

    has_next: bool = False
    first_error: GatewayError | None = None


ALONE = Turn()


class Unserved(Exception):
    """A call that was surely not charged, for no fault of the client; its reservation stays."""

    def __init__(self, failure: ProviderFailure, error: GatewayError) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.error = error


class PaidCalls:
    """Makes the calls whose cost is reserved."""

    def __init__(
        self,
        *,
        credentials: Credentials,
        providers: Mapping[str, ImageProvider],
        results: Results,
        settlements: Settlements,
        settings: Settings,
    ) -> None:
        self._credentials = credentials
        self._providers = providers
        self._results = results
        self._settlements = settlements
        self._settings = settings
        self._vendor_limits = VendorLimits()

    def hold_seconds(self, request: ImageRequest) -> int:
        """The longest time that a call may take in seconds; its reservation expires with it."""
        read_timeout = (
            self._settings.provider_read_timeout_seconds or request.model.read_timeout_seconds
        )
        return int(read_timeout) + self._settings.hold_margin_seconds

    async def make(
        self,
        paid: PaidCall,
        secret: SecretText,
        partials: PartialSink | None,
        call: ProviderCall,
        turn: Turn = ALONE,
    ) -> Generation:
        """Make the call, then store and settle; `call` hears what it says of the provider.

        Raises:
            GatewayError: the provider's failure in the client's terms, or an image that is not
                finished or not stored.
            Unserved: another model may be called. Until then the call is known as not charged.
        """
        is_open = False
        try:
            answer = await self._call(paid, secret, partials)
            call.succeeded()
            return await self._succeed(paid, answer)
        except ProviderFailure as failure:
            note_failure(call, failure)
            if turn.has_next and _is_served_elsewhere(paid, failure):
                error = _client_error(paid, failure)
                free = Settlement(paid.id, failure.outcome, NanoUsd(0))
                self._settlements.know(paid.caller.tenant_id, free)
                is_open = True
                raise Unserved(failure, error) from failure
            await self._fail(paid, failure, turn)
        finally:
            if not is_open:
                # Settles as far as the cost is known, also after a defect on the way.
                self._settlements.end_as_known(paid.id)

    async def give_up(self, paid: PaidCall, failure: ProviderFailure, turn: Turn) -> NoReturn:
        """Void a reservation whose call was not charged and that no other model serves.

        Raises:
            GatewayError: the first failure.
        """
        try:
            await self._fail(paid, failure, turn)
        finally:
            self._settlements.end_as_known(paid.id)

    async def _call(
        self, paid: PaidCall, secret: SecretText, partials: PartialSink | None
    ) -> ProviderAnswer:
        """Make the call, timed, and note its outcome in any case."""
        unit = quotes.unit_of(paid.served.model, paid.quote.price)
        list_calls = partial(listed, paid.served.model.id, paid.provider, unit)
        sent = ended = list_calls(unanswered(paid.served))
        self._settlements.sent(paid.caller.tenant_id, paid.id, sent)
        started = time.perf_counter()
        outcome, reply = Outcome.AMBIGUOUS, None
        try:
            # The provider's own timeout is per read: an answer that drips never meets it.
            async with asyncio.timeout(self.hold_seconds(paid.served)):
                with CallStep(paid.provider, paid.served) as calling:
                    answer = await self._try_twice(paid, secret, partials)
                    calling.note(answer)
        except ProviderFailure as failure:
            outcome, reply = failure.outcome, failure.reply
            ended = list_calls(failure.made)
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
            is_known = answer.usage is not None or unit is not Unit.TOKEN
            outcome = Outcome.SUCCESS if is_known else Outcome.SUCCESS_NO_USAGE
            reply, ended = answer.reply, list_calls(answer.made)
            check_version(paid.id, paid.served.model, answer)
            return answer
        finally:
            elapsed = time.perf_counter() - started
            self._settlements.ended(paid.id, sent, ended)
            current().replied(
                reply, elapsed, calls=count_sent(ended) or 0, version=version_served(ended)
            )
            self._vendor_limits.note(paid.provider, paid.credential, reply)
            model = paid.served.model.id
            telemetry.provider_seconds.labels(paid.provider, model, outcome).observe(elapsed)

    async def _try_twice(
        self, paid: PaidCall, secret: SecretText, partials: PartialSink | None
    ) -> ProviderAnswer:
        """Make the call; once more where the first was surely never sent."""
        provider = self._providers[paid.provider]
        try:
            return await provider.generate(paid.served, secret, partials)
        except ProviderFailure as failure:
            if failure.outcome is not Outcome.NOT_SENT:
                raise
        return await provider.generate(paid.served, secret, partials)

    async def open_credential(self, paid: PaidCall) -> SecretText:
        """Open the credential, last thing before the call; without it the hold is given back."""
        if paid.credential.owner == SANDBOX:
            return SecretText("")
        try:
            if paid.credential.sealed is None:  # the house's, for which nothing is waited
                return await self._credentials.open(paid.credential, paid.provider)
            async with answered_within(self._settings.admission_seconds):
                return await self._credentials.open(paid.credential, paid.provider)
        except Exception as error:  # top: no call is made, so nothing stays reserved
            unsent = Settlement(paid.id, Outcome.NOT_SENT, NanoUsd(0))
            settling = self._settlements.settle(paid.caller.tenant_id, unsent)
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

    async def _fail(self, paid: PaidCall, failure: ProviderFailure, turn: Turn) -> NoReturn:
        error = turn.first_error
        if error is None or not _is_served_elsewhere(paid, failure):
            error = _client_error(paid, failure)
        outcome, cost_nano, answer = failure.outcome, NanoUsd(0), None
        record = current()
        record.reason = failure.reason
        if outcome is Outcome.AMBIGUOUS:
            record.cost(None, CostStatus.PENDING)
        elif outcome in CHARGED:  # and no image that could be read
            cost_nano, status = self._cost(
                paid,
                failure.usage,
                images=paid.served.n,
                microseconds=failure.microseconds,
                likely=paid.served.model.usual,
            )
            if status is CostStatus.ESTIMATED:
                outcome = Outcome.SUCCESS_NO_USAGE
            record.cost(cost_nano, status)
            answer = record_error(error) if paid.request.idempotency else None
        else:
            record.cost(cost_nano, CostStatus.ACTUAL)
        settlement = Settlement(paid.id, outcome, cost_nano, usage=failure.usage, answer=answer)
        with postgresql_step("settle", "settle"):
            settling = self._settlements.settle(paid.caller.tenant_id, settlement)
            await self._settlements.acknowledged(settling)
        log.info(
            "generation_failed",
            generation=str(paid.id),
            outcome=failure.outcome,
            reason=failure.reason,
            tenant=str(paid.caller.tenant_id),
        )
        raise error from failure

    async def _succeed(self, paid: PaidCall, answer: ProviderAnswer) -> Generation:
        served = quotes.choice_served(paid.served, answer)
        cost_nano, status = self._cost(
            paid,
            answer.usage,
            images=len(answer.images),
            microseconds=answer.microseconds,
            likely=quotes.likely_choice(paid.served, answer),
            is_open=answer.is_cost_open,
        )
        is_known = status is CostStatus.ACTUAL
        current().cost(cost_nano, status)
        usage_metrics.count_output(
            *(paid.caller.tenant_id, paid.provider, paid.served.model.id),
            livemode=paid.caller.livemode,
            images=len(answer.images),
            usage=answer.usage,
        )
        settlement = Settlement(
            paid.id,
            Outcome.SUCCESS if is_known else Outcome.SUCCESS_NO_USAGE,
            cost_nano,
            images=len(answer.images),
            usage=answer.usage,
            served=served,
        )
        self._settlements.know(paid.caller.tenant_id, settlement)
        try:
            finish = continuity.finish(paid.request, paid.served)
            encoding = continuity.encoding(paid.served)
            answer = await self._results.process(answer, finish, encoding)
        except ImageUnfinished as error:
            telemetry.alarm("image_unfinished", generation=str(paid.id), error=error.message)
            images, _, _ = await self._keep(paid, answer, settlement, failed=error)
            ids = [image.id for image in images if image.url is not None]
            raise kept_unfinished(error, ids) from error
        images, kept, settled = await self._keep(paid, answer, settlement)
        if paid.request.response_format == "url" and kept is not StorageState.STORED:
            has_key = paid.request.idempotency is not None
            raise not_stored(paid.id, [image.id for image in images], kept, has_key=has_key)
        return Generation(
            id=paid.id,
            request=paid.request,
            served=paid.served,
            answer=answer,
            images=images,
            cost_nano=cost_nano,
            cost_status=status if settled else CostStatus.PENDING,
            provider=paid.provider,
            kept=kept,
        )

    def _estimate(self, paid: PaidCall, likely: AutoChoice) -> NanoUsd:
        """Estimate a call without usage, by the choice that was made or is likely."""
        model, quote = paid.served.model, paid.quote
        return quotes.estimate(quote.terms, model, quote.price, likely, at_most=quote.amount_nano)

    def _cost(
        self,
        paid: PaidCall,
        usage: Usage | None,
        *,
        images: int,
        microseconds: int | None,
        likely: AutoChoice,
        is_open: bool = False,
    ) -> tuple[NanoUsd, CostStatus]:
        """Compute the cost of a charged call, and count it in the metrics.

        It is an estimate by `likely` if `is_open`, or if the provider has not told what it used.
        """
        status = CostStatus.ACTUAL
        cost_nano = quotes.cost_of_call(
            paid.served, paid.quote.price, usage=usage, images=images, microseconds=microseconds
        )
        if cost_nano is None or is_open:
            status = CostStatus.ESTIMATED
            cost_nano = self._estimate(paid, likely)
            telemetry.alarm("usage_missing", generation=str(paid.id), model=paid.served.model.id)
        usage_metrics.count_cost(
            *(paid.caller.tenant_id, paid.provider, paid.served.model.id),
            livemode=paid.caller.livemode,
            nano=cost_nano,
        )
        return cost_nano, status

    async def _keep(
        self,
        paid: PaidCall,
        answer: ProviderAnswer,
        settlement: Settlement,
        *,
        failed: GatewayError | None = None,
    ) -> tuple[tuple[StoredImage, ...], StorageState, bool]:
        """Store and settle; returns the images, where they are, and whether Postgres acknowledged.

        At the same time: the money must not wait for a slow store, nor the answer for both.
        """
        files = self._results.files(paid.caller, paid.request, answer)
        stored = tuple(file for file, _ in files)
        settling = self._settlements.settle(
            paid.caller.tenant_id,
            replace(
                settlement,
                stored=stored,
                answer=record_for(paid.caller, paid.request, answer, stored, failed),
            ),
        )
        settle_step = postgresql_step("settle", "settle")
        with step("store", gateway__images=len(files)):
            images, kept = await self._results.store(
                paid.id, paid.caller, paid.request, answer, files
            )
        settled = await self._settlements.acknowledged(settling)
        settle_step.end(None if settled else TimeoutError())
        if not settled:
            current().cost_status = CostStatus.PENDING
        return images, kept, settled


def _is_served_elsewhere(paid: PaidCall, failure: ProviderFailure) -> bool:
    # A key of the tenant's own has an owner of another name; the sandbox has no key at fault.
    return is_served_elsewhere(failure, house_credential=paid.credential.owner in {HOUSE, SANDBOX})


def _client_error(paid: PaidCall, failure: ProviderFailure) -> GatewayError:
    return client_error(
        failure,
        house_credential=paid.credential.owner == HOUSE,
        provider=paid.served.model.provider,  # the sandbox speaks for it
        model=paid.served.model.id,
    )
