"""What is open: calls whose real cost is not known yet, and whether the books agree."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from fastapi import Query as InQuery
from pydantic import BaseModel, Field

from gateway.billing import ledger
from gateway.billing.ledger import OpenState
from gateway.bootstrap import Gateway
from gateway.db.engine import DatabaseUnavailable
from gateway.money import format_usd
from gateway.rest.admin.dependencies import NoQuery
from gateway.rest.admin.schemas import TENANT_ID, Identified, Listed, PageQuery, with_example
from gateway.rest.dependencies import GatewayDep

router = APIRouter(prefix="/reconciliation", tags=["admin: reconciliation"])
MAX_BREAKS = 100
CHECK_SECONDS = 20


class OpenSumObject(BaseModel):
    """How many calls are in one state, and for how much money."""

    state: OpenState = Field(
        description="`held`: under way. `unknown`: they ended in doubt, and their money stays "
        "held. `estimated`: the doubt outlasted its time, and the hold was charged."
    )
    livemode: bool
    count: int
    amount_usd: str
    oldest: datetime | None


class BreakObject(BaseModel):
    """Something that does not agree."""

    what: str
    id: str


class InvariantsObject(BaseModel):
    """Whether budgets, reservations and ledger agree."""

    checked: bool = Field(
        description=f"false: it took longer than {CHECK_SECONDS} seconds; `gateway doctor` has "
        "the time."
    )
    breaks: list[BreakObject] = Field(description=f"The first {MAX_BREAKS}. None, ever.")


class ReconciliationObject(BaseModel):
    """What is open."""

    model_config = with_example(
        object="reconciliation",
        open=[
            {
                "state": "unknown",
                "livemode": True,
                "count": 1,
                "amount_usd": "0.211000000",
                "oldest": "2026-11-21T09:20:00Z",
            }
        ],
        invariants={"checked": True, "breaks": []},
    )

    object: Literal["reconciliation"] = "reconciliation"
    open: list[OpenSumObject]
    invariants: InvariantsObject


class OpenCallObject(Identified):
    """One call whose real cost is not known, by the id of its generation."""

    model_config = with_example(
        id="019aa5f6-4d00-7000-8000-000000000000",
        object="open_call",
        tenant_id=TENANT_ID,
        livemode=True,
        state="unknown",
        provider="openai",
        served_model="gpt-image-2",
        outcome="ambiguous",
        amount_usd="0.211000000",
        admitted_at="2026-11-21T09:20:00Z",
        deadline_at="2026-11-21T09:31:00Z",
    )

    id: UUID
    object: Literal["open_call"] = "open_call"
    tenant_id: UUID
    livemode: bool
    state: OpenState
    provider: str
    served_model: str
    outcome: str | None
    amount_usd: str
    admitted_at: datetime
    deadline_at: datetime


class OpenCallsQuery(PageQuery):
    """Which calls to show."""

    state: OpenState


@router.get("", summary="What is open, and whether the books agree", dependencies=[NoQuery])
async def get_reconciliation(gateway: GatewayDep) -> ReconciliationObject:
    """Counts and sums by state and mode, over all tenants. The check reads the whole ledger."""
    invariants = await _check(gateway)
    async with gateway.database.operator() as session:
        sums = await ledger.sum_open(session)
    return ReconciliationObject(
        open=[
            OpenSumObject(
                state=found.state,
                livemode=found.livemode,
                count=found.count,
                amount_usd=format_usd(found.amount_nano),
                oldest=found.oldest,
            )
            for found in sums
        ],
        invariants=invariants,
    )


@router.get("/calls", summary="The calls that are open, one by one")
async def list_open_calls(
    gateway: GatewayDep, query: Annotated[OpenCallsQuery, InQuery()]
) -> Listed[OpenCallObject]:
    """Of one state, newest first: what to ask the provider about."""
    async with gateway.database.operator() as session:
        page = await ledger.list_open(
            session, state=query.state, limit=query.limit, after=query.after
        )
    data = [_render(call) for call in page.items]
    return Listed[OpenCallObject].of(data, has_more=page.has_more)


async def _check(gateway: Gateway) -> InvariantsObject:
    try:
        found = await ledger.invariant_breaks(
            gateway.database, limit=MAX_BREAKS, timeout_seconds=CHECK_SECONDS
        )
    except DatabaseUnavailable:
        # Too slow, or away: in the second case what comes after this says so.
        return InvariantsObject(checked=False, breaks=[])
    return InvariantsObject(
        checked=True, breaks=[BreakObject(what=one.what, id=one.id) for one in found]
    )


def _render(call: ledger.OpenCall) -> OpenCallObject:
    return OpenCallObject(
        id=call.id,
        tenant_id=call.tenant_id,
        livemode=call.livemode,
        state=call.state,
        provider=call.provider,
        served_model=call.served_model,
        outcome=call.outcome,
        amount_usd=format_usd(call.amount_nano),
        admitted_at=call.admitted_at,
        deadline_at=call.deadline_at,
    )
