"""Settlement of paid calls, also where a later step of the request fails."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import structlog

from gateway import telemetry
from gateway.billing.journal import Journal
from gateway.billing.reservations import Reservations
from gateway.billing.settlement import Settlement
from gateway.db.listed_calls import ListedCall
from gateway.money import NanoUsd
from gateway.provider_answers import Outcome

log = structlog.get_logger(__name__)


class Settlements:
    """The known outcome of every call with a reservation, and the tasks that settle it."""

    def __init__(
        self, reservations: Reservations, journal: Journal | None, *, wait_seconds: float
    ) -> None:
        self._reservations = reservations
        self._journal = journal
        self._wait_seconds = wait_seconds
        self._calls: dict[UUID, list[ListedCall]] = {}
        self._known: dict[UUID, tuple[UUID, Settlement]] = {}
        self._running: dict[asyncio.Task[str], Settlement] = {}

    def sent(self, tenant_id: UUID, reservation_id: UUID, calls: Sequence[ListedCall]) -> None:
        """Note that a tenant's calls are about to go out, of unknown outcome until it is known.

        Raises:
            Unavailable: it cannot be noted. The call must not be made; its hold is given back.
        """
        unsent = Settlement(reservation_id, Outcome.NOT_SENT, NanoUsd(0))
        unknown = Settlement(reservation_id, Outcome.AMBIGUOUS, NanoUsd(0))
        self._known[reservation_id] = (tenant_id, unsent)
        if self._journal is not None:
            self._journal.sent(reservation_id)
        self._known[reservation_id] = (tenant_id, unknown)
        self._calls.setdefault(reservation_id, []).extend(calls)

    def ended(
        self, reservation_id: UUID, sent: Sequence[ListedCall], ended: Sequence[ListedCall]
    ) -> None:
        """List the calls that were sent last as they have ended."""
        listed = self._calls.get(reservation_id)
        if listed is not None:
            listed[len(listed) - len(sent) :] = ended

    def know(self, tenant_id: UUID, settlement: Settlement) -> None:
        """Remember how a call is to be settled should it end here and now."""
        self._known[settlement.id] = (tenant_id, settlement)
        if self._journal is not None:
            self._journal.told(settlement)

    def end_as_known(self, reservation_id: UUID) -> None:
        """Settle a call as it is known, unless it has been settled."""
        known = self._known.get(reservation_id)
        if known is not None:
            self.settle(*known)

    def settle(self, tenant_id: UUID, settlement: Settlement) -> asyncio.Task[str]:
        """Begin to settle; the task ends when Postgres has acknowledged."""
        _, known = self._known.pop(settlement.id, (tenant_id, None))
        if self._journal is not None and (known is None or known.outcome is not settlement.outcome):
            self._journal.told(settlement)
        listed = replace(settlement, calls=tuple(self._calls.pop(settlement.id, ())))
        task = asyncio.create_task(self._reservations.settle(tenant_id, listed))
        self._running[task] = settlement
        telemetry.settlements_waiting.inc()
        task.add_done_callback(self._settled)
        return task

    async def acknowledged(self, settling: asyncio.Task[str]) -> bool:
        """Wait for the acknowledgement for a bounded time; returns False where it did not come."""
        done, _ = await asyncio.wait({settling}, timeout=self._wait_seconds)
        return bool(done) and settling.exception() is None

    def leave_journal(self) -> None:
        """Keep the journal at the end: calls are cut off whose hold may never be undone."""
        if self._journal is not None:
            self._journal.keep()

    async def drain(self) -> None:
        """Settle every call as it is known, and wait for it as long as for any other."""
        for reservation_id in list(self._known):
            self.end_as_known(reservation_id)
        if self._running:
            await asyncio.wait(self._running, timeout=self._wait_seconds)
        if self._running:
            self.leave_journal()  # one of them may void a hold whose call was never sent
        for settling, settlement in self._running.items():
            log.error("settlement_given_up", settlement=repr(settlement))
            settling.cancel()

    def _settled(self, task: asyncio.Task[str]) -> None:
        """Report a settlement that Postgres refuses outright: a defect.

        It must not take the image away. The hold stays, becomes unknown at its deadline, and is
        posted as an estimate.
        """
        settlement = self._running.pop(task)
        telemetry.settlements_waiting.dec()
        error = None if task.cancelled() else task.exception()
        if self._journal is not None and not task.cancelled() and error is None:
            self._journal.settled(settlement.id)
        if error is not None:
            telemetry.alarm("settle_refused", error=type(error).__name__)
            log.error("settle_refused", exc_info=error)
