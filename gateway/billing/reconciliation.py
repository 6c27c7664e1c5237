"""Reconciliation: an operator looks up, shows and resolves calls whose cost is open.

A resolution is a ledger entry and an audit entry in one commit. A `posted` cost never changes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import select, text

from gateway import telemetry
from gateway.billing.estimates import estimates_of
from gateway.db.audit import Action, AuditEntry, list_entries_of, record
from gateway.db.engine import OperatorSession
from gateway.db.listed_calls import ListedCall, read_calls
from gateway.db.money_tables import LedgerRow, ReservationRow
from gateway.db.tables import ApiKeyRow, TenantRow, TenantUserRow
from gateway.domain import Operation
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.image_models import Model
from gateway.money import NanoUsd, format_usd

CallState = Literal["held", "unknown", "estimated", "posted", "void"]
Verdict = Literal["post", "accept", "void"]
MAX_REASON_CHARACTERS = 500
MIN_ID_CHARACTERS = 4
CLOCK_ERROR = timedelta(days=8)
"""The difference between the time of a call's id and of its admission is less (`reserve`)."""
_SHOWN: dict[str, CallState] = {
    "held": "held",
    "unknown": "unknown",
    "posted_est": "estimated",
    "posted": "posted",
    "void": "void",
}
# Each half has its own partial index; only open calls are found by their last characters.
_BY_END = text("""
    SELECT r.id FROM reservation r WHERE r.state IN ('held', 'unknown')
        AND right(replace(r.id::text, '-', ''), :length) = :digits
    UNION ALL
    SELECT r.id FROM reservation r WHERE r.state = 'posted_est'
        AND right(replace(r.id::text, '-', ''), :length) = :digits
    LIMIT 2
""")
_RESOLVE = text("SELECT * FROM resolve_reservation(:tenant_id, :id, :kind, :amount_nano)")


@dataclass(frozen=True, slots=True)
class Resolution:
    """An operator's decision on one call: post its `cost_nano`, accept its estimate, or void it."""

    verdict: Verdict
    reason: str
    cost_nano: NanoUsd | None = None


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """One ledger entry, in nano-USD."""

    at: datetime
    kind: str
    amount_nano: int


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One paid call with all that is known of its cost, by its generation id.

    `cost_nano` is None while the call is open; `estimate_nano` is its current estimate, None once
    it has a cost. `entries` are the resolutions in the audit trail. `calls`: the provider calls;
    None if they are not listed.
    """

    id: UUID
    tenant_id: UUID
    tenant_name: str
    livemode: bool
    api_key_id: UUID | None
    api_key_name: str | None
    user_id: UUID | None
    user_name: str | None
    state: CallState
    outcome: str | None
    operation: Operation
    requested_model: str
    served_model: str
    provider: str
    credential: str
    held_nano: int
    cost_nano: int | None
    estimate_nano: int | None
    admitted_at: datetime
    deadline_at: datetime
    resolved_at: datetime | None
    calls: tuple[ListedCall, ...] | None
    lines: tuple[LedgerLine, ...]
    entries: tuple[AuditEntry, ...]


async def find_call(session: OperatorSession, text_of_id: str) -> UUID:
    """Find a call by its id or its first characters, or an open call by its last characters.

    Raises:
        InvalidRequest: neither an id nor a part of one, or a part that several calls share.
        NotFound: there is no such call.
    """
    digits = text_of_id.strip().lower().replace("-", "")
    if not re.fullmatch(f"[0-9a-f]{{{MIN_ID_CHARACTERS},32}}", digits):
        raise InvalidRequest(
            f"{text_of_id!r} is not the id of a call: give the id, or at least its first or last "
            f"{MIN_ID_CHARACTERS} characters.",
            param="id",
        )
    lowest, highest = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    found = set(
        await session.scalars(
            select(LedgerRow.reservation_id)
            .where(LedgerRow.reservation_id.between(lowest, highest), LedgerRow.seq == 0)
            .limit(2)
        )
    )
    by_end = await session.scalars(_BY_END, {"digits": digits, "length": len(digits)})
    found |= {UUID(str(one)) for one in by_end}
    if not found and len(digits) == len(UUID(int=0).hex):
        return (await _get(session, lowest)).id
    if not found:
        raise NotFound(
            f"There is no call {text_of_id}; only an open call is found by its last characters.",
            param="id",
        )
    if len(found) > 1:
        shown = ", ".join(sorted(map(str, found)))
        raise InvalidRequest(
            f"Several calls match {text_of_id}, such as {shown}. Give more characters of the id.",
            param="id",
        )
    return found.pop()


async def show(session: OperatorSession, models: Mapping[str, Model], call_id: UUID) -> CallRecord:
    """Load one call with its ledger entries and resolutions.

    Raises:
        NotFound: there is no such call.
    """
    row = await _get(session, call_id)
    owners = await session.execute(
        select(TenantRow.name, ApiKeyRow.name, TenantUserRow.name)
        .outerjoin(
            ApiKeyRow, (ApiKeyRow.tenant_id == TenantRow.id) & (ApiKeyRow.id == row.api_key_id)
        )
        .outerjoin(
            TenantUserRow,
            (TenantUserRow.tenant_id == TenantRow.id) & (TenantUserRow.id == row.user_id),
        )
        .where(TenantRow.id == row.tenant_id)
    )
    tenant_name, key_name, user_name = owners.one()
    lines = await session.scalars(
        select(LedgerRow)
        .where(LedgerRow.tenant_id == row.tenant_id, LedgerRow.reservation_id == call_id)
        .order_by(LedgerRow.seq)
    )
    entries = await list_entries_of(
        session, row.tenant_id, Action.CALL_RESOLVED, call_id, since=row.admitted_at
    )
    return CallRecord(
        id=row.id,
        tenant_id=row.tenant_id,
        tenant_name=tenant_name,
        livemode=row.livemode,
        api_key_id=row.api_key_id,
        api_key_name=key_name,
        user_id=row.user_id,
        user_name=user_name,
        state=_SHOWN[row.state],
        outcome=row.outcome,
        operation=Operation(row.operation),
        requested_model=row.requested_model,
        served_model=row.served_model,
        provider=row.provider,
        credential=row.credential,
        held_nano=row.held_nano,
        cost_nano=row.final_nano,
        estimate_nano=await _estimate(session, models, row),
        admitted_at=row.admitted_at,
        deadline_at=row.deadline_at,
        resolved_at=row.resolved_at,
        calls=read_calls(row.calls),
        lines=tuple(LedgerLine(line.at, line.kind, line.amount_nano) for line in lines),
        entries=tuple(entries),
    )


async def resolve(
    session: OperatorSession,
    models: Mapping[str, Model],
    call_id: UUID,
    resolution: Resolution,
) -> CallRecord:
    """Post the actual cost of a call, accept its estimate, or void it; return the changed call.

    Raises:
        InvalidRequest: the reason is empty, too long, or not printable.
        NotFound: there is no such call.
        Conflict: it is in flight (code `call_in_flight`), its cost is final
            (`already_resolved`), or its entries are archived (`call_archived`).
    """
    reason = _checked(resolution.reason)
    row = await _get(session, call_id)
    amount_nano = resolution.cost_nano
    if resolution.verdict == "accept":
        amount_nano = await _estimate(session, models, row)
    found = await session.execute(
        _RESOLVE,
        {
            "tenant_id": row.tenant_id,
            "id": call_id,
            "kind": resolution.verdict,
            "amount_nano": amount_nano,
        },
    )
    done = found.one()
    if done.result != "ok":
        raise _refusal(row, done.result, done.state_before, done.nano_before)
    if done.breach > 0:
        telemetry.alarm("bound_breach", reservation=str(call_id), nano=done.breach)
    await record(
        session,
        Action.CALL_RESOLVED,
        tenant_id=row.tenant_id,
        object_id=call_id,
        before=_shown(done.state_before, done.nano_before),
        after={
            **_shown(done.state_after, done.nano_after),
            "verdict": resolution.verdict,
            "reason": reason,
        },
    )
    session.expire(row)
    return await show(session, models, call_id)


def _checked(reason: str) -> str:
    reason = reason.strip()
    if not 0 < len(reason) <= MAX_REASON_CHARACTERS or not reason.isprintable():
        raise InvalidRequest(
            f"reason must have 1 to {MAX_REASON_CHARACTERS} printable characters in one line "
            f"(got {len(reason)} characters).",
            param="reason",
        )
    return reason


async def _get(session: OperatorSession, call_id: UUID) -> ReservationRow:
    # The id alone is in no index of reservations; the ledger's hold line names the tenant.
    owner = (
        select(LedgerRow.tenant_id)
        .where(LedgerRow.reservation_id == call_id, LedgerRow.seq == 0)
        .limit(1)
    )
    row = await session.scalar(
        select(ReservationRow).where(
            ReservationRow.tenant_id == owner.scalar_subquery(), ReservationRow.id == call_id
        )
    )
    if row is None:
        row = await _get_archived(session, call_id)
    if row is None:
        raise NotFound(f"There is no call {call_id}.", param="id")
    return row


async def _get_archived(session: OperatorSession, call_id: UUID) -> ReservationRow | None:
    """Find a call whose ledger entries are archived: by its time, the first 48 bits of its id."""
    milliseconds = call_id.int >> 80
    if milliseconds > datetime.now(UTC).timestamp() * 1000:
        return None  # of another kind, whose first bits are no time
    made_at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    found: ReservationRow | None = await session.scalar(
        select(ReservationRow).where(
            ReservationRow.id == call_id,
            ReservationRow.admitted_at.between(made_at - CLOCK_ERROR, made_at + CLOCK_ERROR),
        )
    )
    return found


async def _estimate(
    session: OperatorSession, models: Mapping[str, Model], row: ReservationRow
) -> NanoUsd | None:
    if row.final_nano is not None:
        return None
    return (await estimates_of(session, models, [row]))[row.id]


def _shown(state: str, cost_nano: int | None) -> dict[str, object]:
    cost = None if cost_nano is None else format_usd(cost_nano)
    return {"state": _SHOWN[state], "cost_usd": cost}


def _refusal(
    row: ReservationRow, result: str, state: str | None, cost_nano: int | None
) -> Conflict | NotFound:
    if result == "under_way":
        return Conflict(
            f"Call {row.id} is in flight until {row.deadline_at.isoformat()} at the latest; "
            "its worker may still learn its cost. Try again after that.",
            code="call_in_flight",
        )
    if result == "archived":
        return Conflict(
            f"The ledger entries of call {row.id} are archived, so its cost of "
            f"{format_usd(cost_nano or 0)} USD is final.",
            code="call_archived",
        )
    if state == "void":
        return Conflict(
            f"Call {row.id} is void already, at no cost. If it was billed, post its cost.",
            code="already_resolved",
        )
    return Conflict(
        f"The cost of call {row.id} is posted as {format_usd(cost_nano or 0)} USD, and a posted "
        "cost never changes.",
        code="already_resolved",
    )
