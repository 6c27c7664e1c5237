"""The only way an image is made: reserve → call → store, settle. REST and MCP translate around it.

    generate ─ admission ─► owned task: continuity, price, credential, quote
                                        ─► circuit ─► limits ─► reserve (commit)
                                        ─► provider call, no connection held
                                        ─► finish ─► store, and settle (commit) ─► answer

From the reservation on, everything runs in a task that belongs to the process: a client that
disconnects cannot stop a call that is being paid for.

An idempotency key is claimed in the commit that reserves, so a new request needs no look-up. The
key of a request that a step before the reservation refuses is looked up then: what was bought is
answered again, although a new request would be refused.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import structlog

from gateway import telemetry
from gateway.billing import quotes
from gateway.billing.journal import Journal
from gateway.billing.price_lists import PriceList, price_list
from gateway.billing.prices import Prices
from gateway.billing.rerouting import Rerouting
from gateway.billing.reservations import Reservations
from gateway.billing.reserving import AlreadyClaimed, ReservationRequest
from gateway.catalog.loading import Catalog
from gateway.config import Settings
from gateway.db.engine import DatabaseUnavailable
from gateway.domain import (
    Admitted,
    Caller,
    Generation,
    ImageRequest,
    ProgressSink,
    Quote,
    RepeatedClaim,
    new_id,
)
from gateway.errors import (
    GatewayError,
    NotConfigured,
    OutcomeUnknown,
    RateLimited,
    Unavailable,
)
from gateway.generation import continuity
from gateway.generation.failures import shutting_down
from gateway.generation.fallback import FallbackCalls, OpenedCall, substitutes
from gateway.generation.idempotency import Replays, repeated
from gateway.generation.paid_calls import SANDBOX, PaidCall, PaidCalls
from gateway.generation.provider_circuits import HOUSE, provider_call
from gateway.generation.request_resources import RequestResources
from gateway.generation.results import Results
from gateway.generation.settlements import Settlements
from gateway.image_models import Model
from gateway.limits.enforcement import Admission, Limiter
from gateway.load.circuits import Circuits, ProviderCall, TroubledCircuit
from gateway.load.concurrency import Bulkhead
from gateway.load.gate import Gate, GateSlot, current_slot
from gateway.money import NanoUsd
from gateway.providers.base import ImageProvider
from gateway.request_record import current
from gateway.tenancy.credentials import CredentialChoice, Credentials
from gateway.tracing import postgresql_step, step

CANCEL_SECONDS = 2.0
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Reserved:
    """A purchase that every step has admitted and whose cost is reserved."""

    purchase: PaidCall
    call: ProviderCall
    admission: Admission
    others: list[PaidCall]
    """The calls that may serve it instead, in their order; the reservation covers each."""


class Pipeline:
    """Makes images for callers; owns the paid calls that are running."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        prices: Prices,
        credentials: Credentials,
        reservations: Reservations,
        rerouting: Rerouting,
        providers: Mapping[str, ImageProvider],
        results: Results,
        replays: Replays,
        gate: Gate,
        circuits: Circuits,
        limiter: Limiter,
        journal: Journal | None,
        settings: Settings,
    ) -> None:
        self._catalog = catalog
        self._prices = prices
        self._credentials = credentials
        self._reservations = reservations
        self._results = results
        self._replays = replays
        self._gate = gate
        self._circuits = circuits
        self._limiter = limiter
        # Test calls have slots of their own: they must not take those of live ones.
        self._live_slots = Bulkhead(
            settings.max_concurrent_generations,
            "generations",
            most_of_one=settings.resolved_max_generations_per_tenant,
        )
        self._test_slots = Bulkhead(settings.max_concurrent_test_generations, "test generations")
        self._running: set[asyncio.Task[Generation]] = set()
        self._settlements = Settlements(
            reservations, journal, wait_seconds=settings.settle_wait_seconds
        )
        self._paid_calls = PaidCalls(
            credentials=credentials,
            providers=providers,
            results=results,
            settlements=self._settlements,
            settings=settings,
        )
        self._fallback = FallbackCalls(
            paid_calls=self._paid_calls,
            circuits=circuits,
            limiter=limiter,
            rerouting=rerouting,
            is_draining=lambda: self._draining,
        )
        self._draining = False

    def troubled_circuits(self) -> list[TroubledCircuit]:
        """List the circuits of this process that hold calls back."""
        return self._circuits.troubled()

    async def generate(
        self,
        caller: Caller,
        request: ImageRequest,
        progress: ProgressSink | None = None,
    ) -> Generation:
        """Make the images of a checked request; its input files are closed in any case.

        A caller that is cancelled stops waiting; the call goes on and is settled. `progress` takes
        the admission and, where the request asks for a stream, the partial images. The request's
        slot inside the gate is left when its call goes out; without one it waits for one.

        Raises:
            Unavailable: too many at once, shutting down, no credential, no price, no database.
            LimitReached, BudgetExceeded: a limit or a budget is in the way; nothing was bought.
            GatewayError: what the provider's failure means for the client.
        """
        current().requested_model = request.requested_model
        held, task = RequestResources(request), None
        try:
            held.slot = slot = current_slot() or await self._gate.enter(caller.tenant_id)
            held.take(self._room(caller), caller.tenant_id)
            task = asyncio.create_task(self._generate(caller, request, slot, progress))
        finally:
            if task is None:
                held.release()
        current().hold()
        task.add_done_callback(lambda _: held.release())
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
        """Map a retired model's request to its successor's parameters; others stay as they are."""
        serving = self._catalog.serving(request.model, livemode=caller.livemode)
        return continuity.serve(request, serving)

    async def look_up(self, caller: Caller, request: ImageRequest) -> ImageRequest:
        """The request with its idempotency key looked up: its claim is new, or repeated.

        Raises:
            DatabaseUnavailable: no answer in time.
        """
        return replace(request, idempotency=await self._replays.look_up(caller, request))

    @property
    def draining(self) -> bool:
        """True once the pipeline takes no new work."""
        return self._draining

    async def quote(self, served: ImageRequest) -> Quote:
        """Quote the most that a served request can cost with its model; nothing is bought."""
        return quotes.quote(served, await self._prices.current(served.priced_as))

    async def quote_most(self, caller: Caller, request: ImageRequest) -> tuple[ImageRequest, Quote]:
        """Quote the most that a request can cost; return it as served at first, and the quote.

        It is that of the dearest model that may serve it, as its reservation: a fallback costs no
        more than was quoted.

        Raises:
            NotConfigured: none of them has a price.
        """
        served = self.serve(caller, request)
        found, refusal = [], None
        for one in (served, *substitutes(self._catalog, caller, served)):
            try:
                found.append(await self.quote(one))
            except NotConfigured as error:
                refusal = refusal or error
        if not found and refusal is not None:
            raise refusal
        return served, max(found, key=lambda quote: quote.amount_nano)

    async def price_list(self, model: Model) -> PriceList | None:
        """List what a model's images cost now; None if it has no price."""
        return await price_list(self._prices, model)

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

    def _room(self, caller: Caller) -> Bulkhead:
        if self._draining:
            raise shutting_down()
        return self._live_slots if caller.livemode else self._test_slots

    def _ended(self, task: asyncio.Task[Generation]) -> None:
        self._running.discard(task)
        telemetry.generations_in_flight.dec()
        # A client that waited has it too; asyncio would report the error as never retrieved.
        error = None if task.cancelled() else task.exception()
        record = current()
        if isinstance(error, GatewayError):
            record.fail(error)
        record.release()

    async def _generate(
        self,
        caller: Caller,
        request: ImageRequest,
        slot: GateSlot,
        progress: ProgressSink | None,
    ) -> Generation:
        claim = request.idempotency
        if isinstance(claim, RepeatedClaim):
            return await self._replays.replay(caller, request, claim, found=slot.leave)
        async with AsyncExitStack() as steps:
            with step("reserve"):
                reserved = await self._reserve(caller, request, steps)
            if isinstance(reserved, _Reserved):
                return await self._buy(reserved, slot, progress)
        # After the steps, which have given back by now what they took for a new request.
        return await self._replays.replay(caller, request, reserved, found=slot.leave)

    async def _reserve(
        self, caller: Caller, request: ImageRequest, steps: AsyncExitStack
    ) -> _Reserved | RepeatedClaim:
        """Pass every step that may refuse the request; the last one reserves its cost.

        Raises:
            GatewayError: a step refuses it, and no earlier request has its idempotency key.
        """
        try:
            orders = await self._order(caller, request)
            purchase, call = self._pass_circuit(orders, steps)
            orders = [one for one in orders if _is_house(one) == _is_house(purchase)]
            house = purchase.provider if _is_house(purchase) else None
            admission = await steps.enter_async_context(
                self._limiter.admit(caller, request.n, house)
            )
        except DatabaseUnavailable:
            raise  # the look-up would wait for the same database
        except GatewayError:
            claim = await self._replays.look_up(caller, request)
            if isinstance(claim, RepeatedClaim):
                return claim
            raise
        try:
            with postgresql_step("postgresql reserve", "reserve"):
                held_nano = await self._reserve_cost(purchase, orders)
        except AlreadyClaimed:
            admission.withdraw()
            return repeated(request)
        others = [
            replace(order, id=purchase.id)  # they share the reservation
            for order in orders
            if order.quote.amount_nano <= held_nano
        ]
        return _Reserved(purchase, call, admission, others)

    async def _order(self, caller: Caller, request: ImageRequest) -> list[PaidCall]:
        """Choose the calls that may answer the request, the preferred first.

        Raises:
            NotConfigured: there is no credential or no price for any of them.
        """
        await self._results.check(request)
        served = self.serve(caller, request)
        if not self._catalog.fallbacks(served.model.id):
            return [await self._order_of(caller, request, served)]
        orders, refusal = [], None
        for one in (served, *substitutes(self._catalog, caller, served)):
            try:
                orders.append(await self._order_of(caller, request, one))
            except NotConfigured as error:
                refusal = refusal or error
        if not orders and refusal is not None:
            raise refusal
        return orders

    def _pass_circuit(
        self, orders: list[PaidCall], steps: AsyncExitStack
    ) -> tuple[PaidCall, ProviderCall]:
        """Take the first of the calls whose circuit lets it through; those after it remain.

        Raises:
            Unavailable, RateLimited, CredentialRejected: none does; the error of the first.
        """
        refusal = None
        while True:
            order = orders.pop(0)
            model = order.served.model.id
            current().buy(model, order.provider, order.credential.owner)
            try:
                guard = provider_call(
                    self._circuits, order.caller, order.provider, model, order.credential
                )
                return order, steps.enter_context(guard)
            except (Unavailable, RateLimited) as error:
                refusal = refusal or error
                if not orders:
                    raise refusal from None

    async def _order_of(
        self, caller: Caller, request: ImageRequest, served: ImageRequest
    ) -> PaidCall:
        """Choose the credential with which `served` is bought, and quote it."""
        provider = served.model.provider if caller.livemode else SANDBOX
        credential = (
            await self._credentials.choose(caller, provider)
            if caller.livemode
            else CredentialChoice(SANDBOX)
        )
        quote = await self.quote(served)
        return PaidCall(new_id(), caller, request, served, quote, provider, credential)

    async def _reserve_cost(self, purchase: PaidCall, others: Sequence[PaidCall]) -> NanoUsd:
        """Reserve the dearest of the calls, or the first where the budgets have no more."""
        request, served = purchase.request, purchase.served
        return await self._reservations.reserve(
            ReservationRequest(
                id=purchase.id,
                caller=purchase.caller,
                quote=purchase.quote,
                operation=request.operation,
                requested_model=request.requested_model,
                served_model=served.model.id,
                provider=purchase.provider,
                credential=purchase.credential.owner,
                ttl_seconds=self._paid_calls.hold_seconds(served),
                idempotency=request.idempotency,
                most_nano=max(one.quote.amount_nano for one in (purchase, *others))
                if others
                else None,
            )
        )

    async def _buy(
        self, reserved: _Reserved, slot: GateSlot, progress: ProgressSink | None
    ) -> Generation:
        purchase, standings = reserved.purchase, reserved.admission.standings
        if progress is not None:
            progress(Admitted(standings))
        current().generation_id = purchase.id
        secret = await self._paid_calls.open_credential(purchase)
        reserved.admission.mark_sent()
        slot.leave()
        if reserved.others:
            opened = OpenedCall(purchase, secret, reserved.call)
            generation = await self._fallback.make(opened, reserved.others, progress)
        else:
            generation = await self._paid_calls.make(purchase, secret, progress, reserved.call)
        return replace(generation, standings=standings) if standings else generation


def _is_house(order: PaidCall) -> bool:
    """Tell if the operator's key pays: a fallback never moves a call from a tenant's key to it."""
    return order.credential.owner == HOUSE
