"""Calls whose cost is open: the list by state, and their resolution by an operator."""

from collections.abc import Mapping
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.billing import ledger, reconciliation
from gateway.billing.ledger import OPEN_STATES, OpenState
from gateway.billing.reconciliation import Resolution
from gateway.console.dependencies import FormDep, OperatorChanger, OperatorReader, redirect
from gateway.console.forms import REFUSALS, one_of, refused, typed, usd
from gateway.console.pages.operator_requests import request_page, request_path
from gateway.console.pages.operator_shared import operator_page
from gateway.errors import InvalidRequest
from gateway.identity.transactions import changing_as_operator, reading_as_operator
from gateway.rest.dependencies import GatewayDep

PATH = "/console/open-calls"
PAGE_SIZE = 50
NAMES: dict[OpenState, str] = {
    "unknown": "Unknown",
    "estimated": "Estimated",
    "held": "Under way",
}
MEANINGS: dict[OpenState, str] = {
    "unknown": "The outcome is not known: the provider may have charged for it. Its amount stays "
    "held until a late answer, an operator, or an estimate settles it.",
    "estimated": "The outcome stayed unknown, and an estimate was charged. Post the true cost when "
    "the provider's bill shows it, or void it.",
    "held": "The provider is working on it, or its worker ended. Past its deadline it becomes "
    "unknown.",
}
EMPTY: dict[OpenState, str] = {
    "unknown": "The outcome of every call is known",
    "estimated": "No cost is an estimate",
    "held": "No call is under way",
}

router = APIRouter()


@router.get(PATH)
async def show_open_calls(
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    state: str = "unknown",
    after: UUID | None = None,
) -> Response:
    """List the calls in one state, newest first, with their age and amount."""
    chosen = _state(state)
    async with reading_as_operator(gateway, viewer) as session:
        sums = await ledger.sum_open(session)
        listed = await ledger.list_open(session, state=chosen, limit=PAGE_SIZE, after=after)
    here = f"{PATH}?state={chosen}"
    return operator_page(
        viewer,
        request,
        "open_calls.html",
        title="Open calls",
        lead="Calls whose cost is not known for certain.",
        tabs=[
            (
                f"{NAMES[one]} ({sum(each.count for each in sums if each.state == one)})",
                f"{PATH}?state={one}",
                one == chosen,
            )
            for one in NAMES
        ],
        sums=[each for each in sums if each.state == chosen and each.count],
        meaning=MEANINGS[chosen],
        empty=EMPTY[chosen],
        chosen=chosen,
        found=listed.items,
        newest=here if after else "",
        older=f"{here}&after={listed.items[-1].id}" if listed.has_more else "",
    )


@router.post("/console/calls/{call_id}/resolve")
async def resolve(
    call_id: UUID, request: Request, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Post the cost of a call, accept its estimate, or void it."""
    try:
        resolution = _resolution(form)
        async with changing_as_operator(gateway, viewer) as session:
            await reconciliation.resolve(session, gateway.core.catalog.models, call_id, resolution)
    except REFUSALS as error:
        state = refused("resolve", form, error)
        return await request_page(request, gateway, viewer, str(call_id), state=state)
    return redirect(f"{request_path(call_id)}?done=resolved")


def _resolution(form: Mapping[str, str]) -> Resolution:
    reason = typed(form, "reason")
    if one_of(form, "verdict", ("post", "accept", "void")) == "post":
        return Resolution("post", reason, usd(form, "cost_usd"))
    if typed(form, "cost_usd"):
        raise InvalidRequest(
            "A cost belongs to the first choice alone. Empty this field, or choose to post it.",
            param="cost_usd",
        )
    return Resolution("void" if form["verdict"] == "void" else "accept", reason)


def _state(text: str) -> OpenState:
    for state in OPEN_STATES:
        if state == text:
            return state
    raise InvalidRequest(
        f"state must be one of {', '.join(OPEN_STATES)} (got {text[:20]!r}).", param="state"
    )
