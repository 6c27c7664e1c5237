"""Fallback: another model's call in place of one that was surely not charged.

All calls of a request share its reservation, which covers the dearest of them. An unknown outcome
ends the chain: it may have been charged. The operator's models file has the chains.
"""

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog

from gateway import telemetry
from gateway.billing.rerouting import Rerouting
from gateway.catalog.loading import Catalog
from gateway.db.engine import DatabaseUnavailable
from gateway.domain import Caller, Generation, ImageRequest, PartialSink, SecretText
from gateway.errors import CredentialRejected, GatewayError, RateLimited, Unavailable
from gateway.generation.failures import shutting_down
from gateway.generation.paid_calls import PaidCall, PaidCalls, Turn, Unserved
from gateway.generation.provider_circuits import HOUSE, provider_call
from gateway.generation.translation import in_words_of
from gateway.limits.enforcement import Limiter
from gateway.load.circuits import Circuits, ProviderCall
from gateway.providers.base import Reason
from gateway.request_record import current

REFUSALS = (Unavailable, RateLimited, CredentialRejected)
"""The errors of an open circuit, or of the operator's own limit on a provider."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedCall:
    """A call whose circuit let it through and whose credential is opened."""

    paid: PaidCall
    secret: SecretText
    call: ProviderCall


def substitutes(catalog: Catalog, caller: Caller, served: ImageRequest) -> Iterator[ImageRequest]:
    """Yield the request in the words of each model that may serve it instead, in their order.

    A model that cannot say the request, or that the caller may not use, is passed over.
    """
    if not caller.tenant_settings.fallback:
        return
    for model in catalog.substitutes(caller, served.model):
        try:
            yield in_words_of(served, model)
        except GatewayError as error:
            log.info("fallback_unsuitable", model=model.id, param=error.param)


class FallbackCalls:
    """Makes the calls of a request in turn, until one serves it or may have been charged."""

    def __init__(
        self,
        *,
        paid_calls: PaidCalls,
        circuits: Circuits,
        limiter: Limiter,
        rerouting: Rerouting,
        is_draining: Callable[[], bool],
    ) -> None:
        self._paid_calls = paid_calls
        self._circuits = circuits
        self._limiter = limiter
        self._rerouting = rerouting
        self._is_draining = is_draining

    async def make(
        self, first: OpenedCall, others: list[PaidCall], partials: PartialSink | None
    ) -> Generation:
        """Make the first call, and each of `others` where the one before was not charged.

        Raises:
            GatewayError: the first failure, where no other call was made that may be charged; or
                that this gateway is shutting down, if it would have made another call.
        """
        opened, turn = first, Turn(has_next=True)
        async with AsyncExitStack() as steps:
            while True:
                try:
                    return await self._paid_calls.make(
                        opened.paid, opened.secret, partials, opened.call, turn
                    )
                except Unserved as unserved:
                    turn = Turn(bool(others), turn.first_error or unserved.error)
                    failure = unserved.failure
                is_last = not others
                following = await self._next(others, steps)
                if following is None:
                    if self._is_draining() and not is_last:
                        # The first error may ask for a minute's wait; another replica serves now.
                        turn = Turn(first_error=shutting_down())
                    await self._paid_calls.give_up(opened.paid, failure, turn)
                _note(opened.paid, following.paid, failure.reason)
                opened, turn = following, Turn(bool(others), turn.first_error)

    async def _next(self, others: list[PaidCall], steps: AsyncExitStack) -> OpenedCall | None:
        """Move the reservation to the next call that can be made now; None if there is none."""
        while others and not self._is_draining():
            paid = others.pop(0)
            try:
                call = steps.enter_context(
                    provider_call(
                        self._circuits,
                        paid.caller,
                        paid.provider,
                        paid.served.model.id,
                        paid.credential,
                    )
                )
                house = paid.provider if paid.credential.owner == HOUSE else None
                admission = await steps.enter_async_context(
                    self._limiter.admit(paid.caller, paid.served.n, house, own=False)
                )
            except REFUSALS:
                continue
            if not await self._move(paid):
                return None
            secret = await self._paid_calls.open_credential(paid)
            if self._is_draining():
                return None
            admission.mark_sent()
            return OpenedCall(paid, secret, call)
        return None

    async def _move(self, paid: PaidCall) -> bool:
        """Move the reservation; False if it is not held any more, or that is not known."""
        try:
            return await self._rerouting.move(
                paid.caller.tenant_id,
                paid.id,
                paid.quote,
                served_model=paid.served.model.id,
                provider=paid.provider,
                credential=paid.credential.owner,
                ttl_seconds=self._paid_calls.hold_seconds(paid.served),
            )
        except DatabaseUnavailable:
            return False


def _note(failed: PaidCall, paid: PaidCall, reason: Reason) -> None:
    served, instead = failed.served.model.id, paid.served.model.id
    current().buy(instead, paid.provider, paid.credential.owner)
    telemetry.fallbacks_total.labels(served, instead, reason).inc()
    log.info("fallback", generation=str(paid.id), model=served, instead=instead, reason=reason)
