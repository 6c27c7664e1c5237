"""Reserve before a paid call, settle after it: the only writers of money.

States: held → posted | void | unknown; unknown → posted | posted_est | void. See docs/money.md.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import orjson
import structlog

from gateway import telemetry
from gateway.db.addresses import STATEMENT_TIMEOUT_MS
from gateway.db.deadlines import Deadline
from gateway.db.engine import Database, DatabaseUnavailable, Lane
from gateway.db.group_commit import GroupCommit
from gateway.domain import Caller, IdempotencyClaim, Outcome, Provenance, Quote, Usage
from gateway.errors import BudgetExceeded, Unavailable
from gateway.image_models import AutoChoice
from gateway.money import NanoUsd, format_usd_short

LANE_TIMEOUT_SECONDS = 10
MAX_UNDOING = 10_000
LOG_EVERY_ATTEMPTS = 60
SETTLE_BACKOFF_MS = (50, 100, 250, 500, 1000)
log = structlog.get_logger(__name__)


SettlementKind = Literal["post", "post_est", "void", "unknown"]
KIND_BY_OUTCOME: dict[Outcome, SettlementKind] = {
    Outcome.NOT_SENT: "void",
    Outcome.REJECTED: "void",
    Outcome.MODERATION: "void",
    Outcome.SUCCESS: "post",
    Outcome.REFUSED_CHARGED: "post",
    Outcome.SUCCESS_NO_USAGE: "post_est",
    Outcome.AMBIGUOUS: "unknown",
}
CHARGED = frozenset({Outcome.SUCCESS, Outcome.REFUSED_CHARGED})
"""Outcomes whose cost is known and more than nothing."""


@dataclass(frozen=True, slots=True)
class ReservationRequest:
    """The amount to reserve for one call on every budget that applies to its caller."""

    id: UUID
    caller: Caller
    quote: Quote
    operation: str
    requested_model: str
    served_model: str
    provider: str
    credential: str
    ttl_seconds: int
    idempotency: IdempotencyClaim | None = None
    most_nano: NanoUsd | None = None
    """The dearest quote, where several models may serve it; reserved if the budgets have it."""

    @property
    def amount_nano(self) -> NanoUsd:
        """The amount to reserve where the budgets have it."""
        return self.quote.amount_nano if self.most_nano is None else self.most_nano


class AlreadyClaimed(Exception):
    """The request's idempotency key was claimed before; nothing is reserved."""


class ClockSkewed(Unavailable):
    """This gateway's clock and the database's differ by a week or more: nothing is reserved."""

    code = "clock_skewed"

    def __init__(self) -> None:
        super().__init__(
            "The clocks of this gateway and its database differ by a week or more. Nothing was "
            "bought; the operator must set the clock.",
            retry_after_seconds=60,
        )


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One stored image, recorded together with the settlement.

    `ttl_seconds`: its retention; `link_expires_at`: the expiry of the link given to the client
    (Unix seconds). `prompt` is set only if the tenant stores prompts.
    """

    id: str
    path: str
    media_type: str
    size_bytes: int
    ttl_seconds: int
    link_expires_at: int = 0
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    prompt: str | None = field(default=None, repr=False)
    prompt_hash: bytes | None = field(default=None, repr=False)
    provenance: Provenance = Provenance.ORIGINAL


@dataclass(frozen=True, slots=True)
class Settlement:
    """The outcome of one reservation.

    `answer`: the answer to repeated requests. `served`: the quality and size of the images made.
    """

    id: UUID
    outcome: Outcome
    amount_nano: NanoUsd
    images: int = 0
    usage: Usage | None = None
    stored: tuple[StoredFile, ...] = ()
    answer: Mapping[str, object] | None = field(default=None, repr=False)
    served: AutoChoice | None = None


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


@dataclass(frozen=True, slots=True)
class _Answer:
    """One row of the SQL function `reserve`.

    `is_undecided`: nothing is reserved; this worker's shard of the operator's budget is short, and
    the sum over all shards must decide. `is_least`: the quote is reserved, not the dearest.
    """

    refusal: BudgetExceeded | AlreadyClaimed | ClockSkewed | None
    is_undecided: bool = False
    is_least: bool = False


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
        self._holds: GroupCommit[ReservationRequest, _Answer] = GroupCommit(
            "reserve", self._reserve_batch, max_batch=max_batch, abandoned=self._abandoned
        )
        # Batched separately: calls outside the operator's budget need not wait for all its shards.
        self._whole_holds: GroupCommit[ReservationRequest, _Answer] = GroupCommit(
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

    def _abandoned(self, request: ReservationRequest, answer: _Answer) -> None:
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

    async def _reserve_batch(self, requests: Sequence[ReservationRequest]) -> list[_Answer]:
        return await self._ask(self._hold_lane, requests, whole=False)

    async def _reserve_whole(self, requests: Sequence[ReservationRequest]) -> list[_Answer]:
        return await self._ask(self._whole_lane, requests, whole=True)

    async def _ask(
        self, lane: Lane, requests: Sequence[ReservationRequest], *, whole: bool
    ) -> list[_Answer]:
        # One order of tenants and keys in every batch, so that two batches cannot deadlock.
        ordered = sorted(requests, key=_order)
        rows = await lane.fetch(
            "SELECT * FROM reserve($1::jsonb, $2, $3)",
            _to_json([_hold_fields(request) for request in ordered]),
            self._instance,
            whole,
        )
        answers = {row["request_id"]: _answer(row) for row in rows}
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


def report_conflict(settlement: Settlement) -> None:
    """Log a settlement of a call whose final amount differs, or whose month is archived."""
    telemetry.alarm(
        "settle_conflict",
        reservation=str(settlement.id),
        outcome=settlement.outcome,
        nano=settlement.amount_nano,
    )


def _order(request: ReservationRequest) -> tuple[str, ...]:
    """Sort by tenant, then by the columns that identify a claim (`idempotency_claim_owner`)."""
    claim, caller = request.idempotency, request.caller
    if claim is None:
        return (str(caller.tenant_id),)
    owner = (str(caller.user_id), str(caller.livemode))
    return (str(caller.tenant_id), claim.key, *owner, request.operation)


def _answer(row: Mapping[str, Any]) -> _Answer:
    match row["outcome"]:
        case "held":
            return _Answer(None)
        case "held_least":
            return _Answer(None, is_least=True)
        case "whole":
            return _Answer(None, is_undecided=True)
        case "claimed":
            return _Answer(AlreadyClaimed())
        case "clock":
            telemetry.alarm("clock_skewed", reservation=str(row["request_id"]))
            return _Answer(ClockSkewed())
    return _Answer(
        budget_refusal(
            row["owner"],
            row["window_name"],
            limit_nano=row["budget_limit"],
            available_nano=row["available"],
            resets_at=row["resets_at"],
        )
    )


def budget_refusal(
    owner: str, window: str, *, limit_nano: int, available_nano: int, resets_at: datetime | None
) -> BudgetExceeded:
    """Build the error that names the short budget, its remaining amount and its reset.

    The amounts of the operator's own budgets are not disclosed to clients.
    """
    name = "total budget" if window == "total" else f"budget per {window}"
    until = f"It resets at {resets_at.isoformat()}." if resets_at else "It does not reset."
    seconds = (resets_at - datetime.now(UTC)).total_seconds() if resets_at else None
    return BudgetExceeded(
        f"The {name} for all calls with the gateway's own provider key has less left than this "
        f"call can cost at most. {until} It does not apply to a provider key of your own."
        if owner == "house"
        else f"The {owner}'s {name} of {format_usd_short(limit_nano)} USD has "
        f"{format_usd_short(available_nano)} USD left, less than this call can cost at most. "
        f"{until}",
        retry_after_seconds=None if seconds is None else max(1, int(seconds)),
        reason=f"budget {owner}/{window}",
    )


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


def _hold_fields(request: ReservationRequest) -> dict[str, object]:
    caller, claim = request.caller, request.idempotency
    claimed = (
        {}
        if claim is None
        else {"idempotency_key": claim.key, "request_hash": claim.request_hash.hex()}
    )
    return {
        **claimed,
        "id": request.id,
        "tenant_id": caller.tenant_id,
        "api_key_id": caller.api_key_id,
        "user_id": caller.user_id,
        "livemode": caller.livemode,
        "operation": request.operation,
        "requested_model": request.requested_model,
        "served_model": request.served_model,
        "provider": request.provider,
        "credential": request.credential,
        "price_id": request.quote.price.id,
        "amount_nano": request.quote.amount_nano,
        "ttl_seconds": request.ttl_seconds,
        "terms": request.quote.terms,  # a dataclass, which orjson writes as an object
        **({} if request.most_nano is None else {"most_nano": request.most_nano}),
    }


def settlement_fields(tenant_id: UUID, settlement: Settlement) -> dict[str, object]:
    """Render a settlement for the SQL function `settle`."""
    fields: dict[str, object] = {
        "tenant_id": tenant_id,
        "id": settlement.id,
        "kind": KIND_BY_OUTCOME[settlement.outcome],
        "amount_nano": settlement.amount_nano,
        "outcome": settlement.outcome,
        "images": settlement.images,
    }
    if settlement.usage is not None:
        fields |= {
            "text_input_tokens": settlement.usage.text_input_tokens,
            "image_input_tokens": settlement.usage.image_input_tokens,
            "text_output_tokens": settlement.usage.text_output_tokens,
            "image_output_tokens": settlement.usage.image_output_tokens,
        }
    if settlement.stored:
        fields["stored"] = [_stored_fields(file) for file in settlement.stored]
    if settlement.answer is not None:
        fields["answer"] = settlement.answer
    if settlement.served is not None:
        fields |= {"quality": settlement.served.quality, "size": settlement.served.size}
    return fields


def _stored_fields(file: StoredFile) -> dict[str, object]:
    return {
        "id": file.id,
        "path": file.path,
        "media_type": file.media_type,
        "size_bytes": file.size_bytes,
        "ttl_seconds": file.ttl_seconds,
        "width": file.width,
        "height": file.height,
        "seed": file.seed,
        "prompt": None if file.prompt is None else _storable(file.prompt),
        "prompt_hash": None if file.prompt_hash is None else file.prompt_hash.hex(),
        "provenance": file.provenance,
    }


def _storable(text: str) -> str:
    """Replace characters that JSON or Postgres refuse: one would fail the whole batch."""
    return text.replace("\x00", "").encode(errors="replace").decode()
