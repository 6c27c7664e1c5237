"""Reconciliation: calls of unknown cost and their resolution; consistency checks of the ledger."""

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Depends, Path
from fastapi import Query as InQuery
from pydantic import BaseModel, Field, model_validator

from gateway.billing import ledger, reconciliation
from gateway.billing.ledger import OpenState
from gateway.billing.reconciliation import CallRecord, CallState, Resolution, Verdict
from gateway.bootstrap import Gateway
from gateway.db.audit import AuditEntry
from gateway.db.engine import DatabaseUnavailable
from gateway.money import format_usd, parse_usd
from gateway.rest import calls
from gateway.rest.admin.audit import ActorObject, actor_of
from gateway.rest.admin.dependencies import JsonBody, NoQuery, body_of
from gateway.rest.admin.schemas import (
    KEY_ID,
    TENANT_ID,
    Body,
    Identified,
    Listed,
    PageQuery,
    Usd,
    with_example,
)
from gateway.rest.calls import CallsObject, call_objects, sum_calls
from gateway.rest.dependencies import ActorDep, GatewayDep
from gateway.rest.refusals import refused_with

router = APIRouter(prefix="/reconciliation", tags=["admin: reconciliation"])
MAX_BREAKS = 100
CHECK_SECONDS = 20
FIRST_CHECK_SECONDS = 2
"""The same before the first check by a worker, which is under way then and checks everything."""


class OpenSumObject(BaseModel):
    """The number and total amount of calls in one state."""

    state: OpenState = Field(
        description="`held`: in progress. `unknown`: the outcome is not known; the reservation "
        "stays. `estimated`: the outcome stayed unknown, and an estimate was charged."
    )
    livemode: bool
    count: int
    amount_usd: str
    oldest: datetime | None


class BreakObject(BaseModel):
    """A violated invariant."""

    what: str
    id: str


class InvariantsObject(BaseModel):
    """The result of the check that budgets, reservations and ledger agree."""

    checked: bool = Field(
        description=f"false: the check exceeded {CHECK_SECONDS} seconds, or {FIRST_CHECK_SECONDS} "
        "before the first hourly one has ended; `gateway ledger check` has no time limit."
    )
    breaks: list[BreakObject] = Field(
        description=f"The first {MAX_BREAKS} violations; normally empty."
    )


class ReconciliationObject(BaseModel):
    """The calls of unknown cost, and the state of the invariants."""

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
    """One call of unknown cost, by the id of its generation."""

    model_config = with_example(
        id="019aa5f6-4d00-7000-8000-000000000000",
        object="open_call",
        tenant_id=TENANT_ID,
        tenant_name="acme",
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
    tenant_name: str
    livemode: bool
    state: OpenState
    provider: str
    served_model: str
    outcome: str | None
    amount_usd: str
    admitted_at: datetime
    deadline_at: datetime


CALL_ID = "019aa5f6-4d00-7000-8000-000000000000"
CallId = Annotated[UUID, Path(description="Id of its generation.", examples=[CALL_ID])]


class LineObject(BaseModel):
    """One ledger entry. All entries except the `hold` add up to the cost."""

    at: datetime
    kind: Literal["hold", "post", "post_est", "void", "adjust"]
    amount_usd: str


class ResolutionObject(BaseModel):
    """One resolution by an operator, as recorded in the audit trail."""

    at: datetime
    actor: ActorObject
    verdict: Verdict
    reason: str


class CallObject(Identified, CallsObject):
    """One paid call with all facts about its cost, by the id of its generation."""

    model_config = with_example(
        id=CALL_ID,
        object="call",
        tenant_id=TENANT_ID,
        tenant_name="acme",
        livemode=True,
        api_key_id=KEY_ID,
        api_key_name="shop",
        user_id=None,
        user_name=None,
        state="posted",
        outcome="resolved",
        operation="generation",
        requested_model="gpt-image-2",
        served_model="gpt-image-2",
        provider="openai",
        credential="house",
        held_usd="0.211000000",
        cost_usd="0.005920000",
        estimate_usd=None,
        admitted_at="2026-11-21T09:20:00Z",
        deadline_at="2026-11-21T09:31:00Z",
        resolved_at="2026-11-21T10:02:00Z",
        **calls.EXAMPLE,
        lines=[
            {"at": "2026-11-21T09:20:00Z", "kind": "hold", "amount_usd": "0.211000000"},
            {"at": "2026-11-21T10:02:00Z", "kind": "post", "amount_usd": "0.005920000"},
        ],
        resolutions=[
            {
                "at": "2026-11-21T10:02:00Z",
                "actor": {"type": "operator_key", "id": "019aa5f0-0100-7000-8000-000000000000"},
                "verdict": "post",
                "reason": "on the provider's invoice of November",
            }
        ],
    )

    id: UUID
    object: Literal["call"] = "call"
    tenant_id: UUID
    tenant_name: str
    livemode: bool
    api_key_id: UUID | None
    api_key_name: str | None
    user_id: UUID | None
    user_name: str | None
    state: CallState = Field(
        description="As in the list; or `posted`: final; or `void`: it cost nothing."
    )
    outcome: str | None
    operation: Literal["generation", "edit", "variation"]
    requested_model: str
    served_model: str
    provider: str
    credential: str = Field(description="Owner of the provider key: `house`, `tenant`, `user`.")
    held_usd: str
    cost_usd: str | None = Field(description="null while the cost is unknown.")
    estimate_usd: str | None = Field(
        description="The current estimate; null once the cost is known."
    )
    admitted_at: datetime
    deadline_at: datetime
    resolved_at: datetime | None
    lines: list[LineObject]
    resolutions: list[ResolutionObject]


class ResolutionBody(Body):
    """The resolution: `post` with `cost_usd`, `accept` the estimate, or `void` the call."""

    model_config = with_example(
        verdict="post", cost_usd="0.00592", reason="on the provider's invoice of November"
    )

    verdict: Verdict
    cost_usd: Usd | None = Field(None, description="Only with `post`: US dollars.")
    reason: str = Field(
        min_length=1,
        max_length=reconciliation.MAX_REASON_CHARACTERS,
        description="Recorded in the audit trail.",
    )

    @model_validator(mode="after")
    def _has_the_cost_that_it_posts(self) -> Self:
        if (self.verdict == "post") != (self.cost_usd is not None):
            raise ValueError(
                "cost_usd is required with the verdict post, and not allowed with any other"
            )
        return self


class OpenCallsQuery(PageQuery):
    """Filters of the list of calls."""

    state: OpenState


@router.get("", summary="Show calls of unknown cost and check the ledger", dependencies=[NoQuery])
async def get_reconciliation(gateway: GatewayDep) -> ReconciliationObject:
    """Count and sum open calls by state and mode, over all tenants. The check reads what is new
    since the last hourly check, or the whole ledger if none has ended yet.
    """
    invariants = await _check(gateway)
    async with gateway.operators_database.operator() as session:
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


@router.get("/calls", summary="List calls of unknown cost")
async def list_open_calls(
    gateway: GatewayDep, query: Annotated[OpenCallsQuery, InQuery()]
) -> Listed[OpenCallObject]:
    """List calls of one state, newest first."""
    async with gateway.operators_database.operator() as session:
        page = await ledger.list_open(
            session, state=query.state, limit=query.limit, after=query.after
        )
    data = [_render(call) for call in page.items]
    return Listed[OpenCallObject].of(data, has_more=page.has_more)


@router.get(
    "/{call_id}",
    summary="Show a call and its ledger entries",
    responses=refused_with(404),
    dependencies=[NoQuery],
)
async def get_call(gateway: GatewayDep, call_id: CallId) -> CallObject:
    """Return a call of any state, open or not."""
    async with gateway.operators_database.operator() as session:
        found = await reconciliation.show(session, gateway.core.catalog.models, call_id)
    return _render_record(found)


@router.post(
    "/{call_id}/resolve",
    summary="Resolve a call of unknown cost",
    responses=refused_with(404, 409),
    dependencies=[NoQuery],
    openapi_extra=body_of(ResolutionBody),
)
async def resolve_call(
    gateway: GatewayDep,
    actor: ActorDep,
    call_id: CallId,
    body: Annotated[ResolutionBody, Depends(JsonBody(ResolutionBody))],
) -> CallObject:
    """Resolve a call. `post` and `accept` are final. A `void` releases the reservation and frees
    the idempotency key; if the provider bills the call later, its cost can still be posted. Budgets
    change at once.
    """
    cost_nano = None if body.cost_usd is None else parse_usd(body.cost_usd)
    async with gateway.operators_database.operator(by=actor) as session:
        resolved = await reconciliation.resolve(
            session,
            gateway.core.catalog.models,
            call_id,
            Resolution(body.verdict, body.reason, cost_nano),
        )
    return _render_record(resolved)


async def _check(gateway: Gateway) -> InvariantsObject:
    try:
        database = gateway.operators_database
        found = await ledger.new_breaks(
            database, remember=False, limit=MAX_BREAKS, timeout_seconds=CHECK_SECONDS
        )
        if found is None:
            found = await ledger.invariant_breaks(
                database, limit=MAX_BREAKS, timeout_seconds=FIRST_CHECK_SECONDS
            )
    except DatabaseUnavailable:
        # Too slow, or unavailable: the following query reports the second case.
        return InvariantsObject(checked=False, breaks=[])
    return InvariantsObject(
        checked=True, breaks=[BreakObject(what=one.what, id=one.id) for one in found]
    )


def _render(call: ledger.OpenCall) -> OpenCallObject:
    return OpenCallObject(
        id=call.id,
        tenant_id=call.tenant_id,
        tenant_name=call.tenant_name,
        livemode=call.livemode,
        state=call.state,
        provider=call.provider,
        served_model=call.served_model,
        outcome=call.outcome,
        amount_usd=format_usd(call.amount_nano),
        admitted_at=call.admitted_at,
        deadline_at=call.deadline_at,
    )


def _render_record(call: CallRecord) -> CallObject:
    return CallObject(
        id=call.id,
        tenant_id=call.tenant_id,
        tenant_name=call.tenant_name,
        livemode=call.livemode,
        api_key_id=call.api_key_id,
        api_key_name=call.api_key_name,
        user_id=call.user_id,
        user_name=call.user_name,
        state=call.state,
        outcome=call.outcome,
        operation=call.operation.value,
        requested_model=call.requested_model,
        served_model=call.served_model,
        provider=call.provider,
        credential=call.credential,
        held_usd=format_usd(call.held_nano),
        cost_usd=None if call.cost_nano is None else format_usd(call.cost_nano),
        estimate_usd=None if call.estimate_nano is None else format_usd(call.estimate_nano),
        admitted_at=call.admitted_at,
        deadline_at=call.deadline_at,
        resolved_at=call.resolved_at,
        **sum_calls(call.calls).model_dump(),
        calls=call_objects(call.calls),
        lines=[
            LineObject.model_validate(
                {"at": line.at, "kind": line.kind, "amount_usd": format_usd(line.amount_nano)}
            )
            for line in call.lines
        ],
        resolutions=[_render_resolution(entry) for entry in call.entries],
    )


def _render_resolution(entry: AuditEntry) -> ResolutionObject:
    after = entry.after or {}
    return ResolutionObject.model_validate(
        {
            "at": entry.at,
            "actor": actor_of(entry),
            "verdict": after.get("verdict"),
            "reason": after.get("reason"),
        }
    )
