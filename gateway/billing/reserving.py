"""The reservation of one paid call: its request, and the answers that Postgres gives to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from gateway import telemetry
from gateway.domain import Caller, IdempotencyClaim, Quote
from gateway.errors import BudgetExceeded, Unavailable
from gateway.money import NanoUsd, format_usd_short


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
class ReserveAnswer:
    """One row of the SQL function `reserve`.

    `is_undecided`: nothing is reserved; this worker's shard of the operator's budget is short, and
    the sum over all shards must decide. `is_least`: the quote is reserved, not the dearest.
    """

    refusal: BudgetExceeded | AlreadyClaimed | ClockSkewed | None
    is_undecided: bool = False
    is_least: bool = False


def order_of(request: ReservationRequest) -> tuple[str, ...]:
    """Sort by tenant, then by the columns that identify a claim (`idempotency_claim_owner`)."""
    claim, caller = request.idempotency, request.caller
    if claim is None:
        return (str(caller.tenant_id),)
    owner = (str(caller.user_id), str(caller.livemode))
    return (str(caller.tenant_id), claim.key, *owner, request.operation)


def read_answer(row: Mapping[str, Any]) -> ReserveAnswer:
    """Read one row of the SQL function `reserve`."""
    match row["outcome"]:
        case "held":
            return ReserveAnswer(None)
        case "held_least":
            return ReserveAnswer(None, is_least=True)
        case "whole":
            return ReserveAnswer(None, is_undecided=True)
        case "claimed":
            return ReserveAnswer(AlreadyClaimed())
        case "clock":
            telemetry.alarm("clock_skewed", reservation=str(row["request_id"]))
            return ReserveAnswer(ClockSkewed())
    return ReserveAnswer(
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


def hold_fields(request: ReservationRequest) -> dict[str, object]:
    """Render a request for the SQL function `reserve`."""
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
