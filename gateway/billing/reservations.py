"""Reserve before a paid call, settle after it: the only writers of money.

States: held → posted | void | unknown; unknown → posted | posted_est | void. See docs/money.md.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import orjson
import structlog

from gateway import telemetry
from gateway.billing.reserving import (
    ReservationRequest,
    ReserveAnswer,
    hold_fields,
    order_of,
    read_answer,
)
from gateway.billing.settlement import Settlement, report_conflict, settlement_fields
from gateway.db.addresses import STATEMENT_TIMEOUT_MS
from gateway.db.deadlines import Deadline
from gateway.db.engine import Database, DatabaseUnavailable, Lane
from gateway.db.group_commit import GroupCommit
from gateway.domain import Caller, IdempotencyClaim
from gateway.money import NanoUsd
from gateway.provider_answers import Outcome

LANE_TIMEOUT_SECONDS = 10
MAX_UNDOING = 10_000
LOG_EVERY_ATTEMPTS = 60
SETTLE_BACKOFF_MS = (50, 100, 250, 500, 1000)
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Owned:
    """A settlement and the tenant that owns its reservation."""

    tenant_id: UUID
    settlement: Settlement


@dataclass(frozen=True, slots=True)
class _Lookup:
    """An idempotency key to look up."""

    caller: Caller
    operation: str
    key: str


class Reservations:
    """Reservations and settlements, each batching many concurrent calls into one commit."""

    def __init__(
        self,
        database: Database,
        *,
        instance: UUID,
        max_batch: int,
        admission_timeout_ms: int,
    ) -> None:
        self._instance = instance
        self._hold_lane = database.lane(timeout_seconds=LANE_TIMEOUT_SECONDS)
        self._whole_lane = database.lane(timeout_seconds=LANE_TIMEOUT_SECONDS)
        self._settle_lane = database.lane(timeout_seconds=LANE_TIMEOUT_SECONDS)
        self._lookup_lane = database.lane(timeout_seconds=LANE_TIMEOUT_SECONDS)
        self._admission_timeout_ms = admission_timeout_ms
        self._holds: GroupCommit[ReservationRequest, ReserveAnswer] = GroupCommit(
            "reserve", self._reserve_batch, max_batch=max_batch, abandoned=self._abandoned
        )
        # Batched separately: calls outside the operator's budget need not wait for all its shards.
        self._whole_holds: GroupCommit[ReservationRequest, ReserveAnswer] = GroupCommit(
            "reserve_whole", self._reserve_whole, max_batch=max_batch, abandoned=self._abandoned
        )
        self._settlements: GroupCommit[_Owned, str] = GroupCommit(
            "settle", self._settle_batch, max_batch=max_batch
        )
        # A read, but one statement serves all concurrent look-ups just as well.
        self._lookups: GroupCommit[_Lookup, bool] = GroupCommit(
            "look_up", self._lookup_batch, max_batch=max_batch
        )
        self._undoing: set[asyncio.Task[None]] = set()
        self._is_undone = True

    async def warm(self) -> None:
        """Connect, and have Postgres prepare the statements and the functions they call.

        Raises:
            DatabaseUnavailable: Postgres is away.
        """
        await self._ask(self._hold_lane, [], whole=False)
        await self._ask(self._whole_lane, [], whole=True)
        await self._lookup_batch([])
        await self._settle_batch([])

    async def reserve(self, request: ReservationRequest) -> NanoUsd:
        """Reserve durably on every budget that applies, or on none; return the reserved amount.

        Raises:
            BudgetExceeded: one of them is short; nothing is reserved.
            ClockSkewed: this gateway's clock is a week off; nothing is reserved.
            AlreadyClaimed: another reservation has the request's idempotency key.
            DatabaseUnavailable: no acknowledgement in time. If the reservation was committed
                nevertheless, it is voided as soon as Postgres answers again.
        """
        try:
            async with Deadline(self._admission_timeout_ms / 1000):
                answer = await self._holds.submit(request)
                if answer.is_undecided:
                    answer = await self._whole_holds.submit(request)
        except Exception as error:  # top: the reservation may be committed
            self._undo_later(request.caller.tenant_id, request.id)
            if isinstance(error, TimeoutError):
                raise DatabaseUnavailable from error
            raise
        if answer.refusal is not None:
            raise answer.refusal
        return request.quote.amount_nano if answer.is_least else request.amount_nano

    async def is_claimed(self, caller: Caller, operation: str, claim: IdempotencyClaim) -> bool:
        """Tell if the caller has claimed this idempotency key with a reservation before.

        Raises:
            DatabaseUnavailable: no answer in time.
        """
        try:
            async with Deadline(self._admission_timeout_ms / 1000):
                return await self._lookups.submit(_Lookup(caller, operation, claim.key))
        except TimeoutError as error:
            raise DatabaseUnavailable from error

    async def settle(self, tenant_id: UUID, settlement: Settlement) -> str:
        """Record the outcome of a tenant's call; retry until Postgres acknowledges it.

        Returns `ok`, or `already` if an earlier attempt was committed without acknowledgement.
        """
        attempt = 0
        while True:
            try:
                return await self._settlements.submit(_Owned(tenant_id, settlement))
            except DatabaseUnavailable:
                delay_ms = SETTLE_BACKOFF_MS[min(attempt, len(SETTLE_BACKOFF_MS) - 1)]
                if attempt % LOG_EVERY_ATTEMPTS == 0:
                    log.warning("settle_waits_for_database", reservation=str(settlement.id))
                attempt += 1
                await asyncio.sleep(delay_ms / 1000)

    async def close(self) -> bool:
        """Stop undoing reservations; return True if every reservation without a call was undone.

        The sweeper of another worker undoes the rest from this worker's journal.
        """
        for task in self._undoing:
            task.cancel()
        if self._undoing:
            self._is_undone = False
            await asyncio.wait(self._undoing)
        self._hold_lane.close()
        self._whole_lane.close()
        self._settle_lane.close()
        self._lookup_lane.close()
        return self._is_undone

    def _abandoned(self, request: ReservationRequest, answer: ReserveAnswer) -> None:
        """Void a reservation that was committed after its request had been refused."""
        if answer.refusal is None and not answer.is_undecided:
            self._undo_later(request.caller.tenant_id, request.id)

    def _undo_later(self, tenant_id: UUID, reservation_id: UUID) -> None:
        if len(self._undoing) >= MAX_UNDOING:
            self._is_undone = False  # the journal stays, and a sweep voids it
            return
        task = asyncio.create_task(self._undo(tenant_id, reservation_id))
        self._undoing.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._undoing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._is_undone = False
            telemetry.alarm("settle_refused", error=type(error).__name__)

    async def _undo(self, tenant_id: UUID, reservation_id: UUID) -> None:
        """Void a reservation that may or may not be committed; its call was never made.

        A statement still running on the server ends within its own timeout, so one more look
        after that timeout is final.
        """
        void = Settlement(reservation_id, Outcome.NOT_SENT, NanoUsd(0))
        if await self.settle(tenant_id, void) == "missing":
            await asyncio.sleep(STATEMENT_TIMEOUT_MS / 1000)
            await self.settle(tenant_id, void)

    async def _reserve_batch(self, requests: Sequence[ReservationRequest]) -> list[ReserveAnswer]:
        return await self._ask(self._hold_lane, requests, whole=False)

    async def _reserve_whole(self, requests: Sequence[ReservationRequest]) -> list[ReserveAnswer]:
        return await self._ask(self._whole_lane, requests, whole=True)

    async def _ask(
        self, lane: Lane, requests: Sequence[ReservationRequest], *, whole: bool
    ) -> list[ReserveAnswer]:
        # One order of tenants and keys in every batch, so that two batches cannot deadlock.
        ordered = sorted(requests, key=order_of)
        rows = await lane.fetch(
            "SELECT * FROM reserve($1::jsonb, $2, $3)",
            _to_json([hold_fields(request) for request in ordered]),
            self._instance,
            whole,
        )
        answers = {row["request_id"]: read_answer(row) for row in rows}
        return [answers[request.id] for request in requests]

    async def _lookup_batch(self, lookups: Sequence[_Lookup]) -> list[bool]:
        rows = await self._lookup_lane.fetch(
            "SELECT number FROM claims_made($1::jsonb) AS number",
            _to_json([_lookup_fields(number, one) for number, one in enumerate(lookups)]),
        )
        claimed = {row["number"] for row in rows}
        return [number in claimed for number in range(len(lookups))]

    async def _settle_batch(self, batch: Sequence[_Owned]) -> list[str]:
        # Tenant by tenant, so that each statement within touches one tenant's rows.
        ordered = sorted(batch, key=lambda one: one.tenant_id)
        rows = await self._settle_lane.fetch(
            "SELECT * FROM settle($1::jsonb)",
            _to_json([settlement_fields(one.tenant_id, one.settlement) for one in ordered]),
        )
        for row in rows:
            if row["breach"] > 0:
                telemetry.alarm(
                    "bound_breach", reservation=str(row["settled_id"]), nano=row["breach"]
                )
            if row["result"] in {"conflict", "archived"}:
                report_conflict(
                    next(o.settlement for o in batch if o.settlement.id == row["settled_id"])
                )
        results = {row["settled_id"]: row["result"] for row in rows}
        return [str(results[one.settlement.id]) for one in batch]


def _to_json(value: object) -> str:
    """Encode as JSON text, including asyncpg's own UUID class, which orjson does not know."""
    return orjson.dumps(value, default=str).decode()


def _lookup_fields(number: int, lookup: _Lookup) -> dict[str, object]:
    return {
        "number": number,
        "tenant_id": lookup.caller.tenant_id,
        "user_id": lookup.caller.user_id,
        "livemode": lookup.caller.livemode,
        "operation": lookup.operation,
        "key": lookup.key,
    }
