"""The request log of all tenants, and of requests without a valid key."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from fastapi import Query as InQuery
from pydantic import ConfigDict, Field

from gateway.request_log import queries
from gateway.request_log.rendering import render_for_operators, render_outcome
from gateway.rest.admin.dependencies import NoQuery
from gateway.rest.admin.schemas import TENANT_ID, Identified, Listed
from gateway.rest.dependencies import GatewayDep
from gateway.rest.requests import (
    EXAMPLE,
    OUTCOME_EXAMPLE,
    PurchaseObject,
    RequestId,
    RequestObject,
    RequestQuery,
)

router = APIRouter(prefix="/requests", tags=["admin: requests"])
OPERATORS_EXAMPLE = EXAMPLE | {
    "tenant_id": TENANT_ID,
    "tenant": "acme",
    "operator_key_id": None,
    "session_id": None,
}


class OperatorsRequestObject(RequestObject, Identified):
    """One request. Without a tenant: an operator's, or one without a valid key."""

    model_config = ConfigDict(json_schema_extra={"examples": [OPERATORS_EXAMPLE]})

    id: str
    tenant_id: UUID | None
    tenant: str | None
    operator_key_id: UUID | None
    session_id: UUID | None = Field(description="The session of the console that sent it.")


class OperatorsRequestDetail(OperatorsRequestObject):
    """One request with its purchase."""

    model_config = ConfigDict(json_schema_extra={"examples": [OPERATORS_EXAMPLE | OUTCOME_EXAMPLE]})

    generation: PurchaseObject | None = Field(description="Current state in the ledger.")
    others: int = Field(description="Number of other requests with this id.")


class OperatorsRequestQuery(RequestQuery):
    """Filters of the request list."""

    tenant: UUID | None = Field(None, description="Only requests of this tenant.")
    livemode: bool | None = Field(None, description="Only live requests, or only test requests.")
    start: str | None = Field(None, description="ISO date (of UTC) or date-time.")


@router.get("", summary="List requests")
async def list_requests(
    gateway: GatewayDep, query: Annotated[OperatorsRequestQuery, InQuery()]
) -> Listed[OperatorsRequestObject]:
    """List requests, newest first, over all tenants."""
    async with gateway.operators_database.operator() as session:
        page = await queries.list_all(
            session,
            query.chosen("UTC"),
            tenant_id=query.tenant,
            livemode=query.livemode,
            limit=query.limit,
            after=query.after,
        )
    data = [OperatorsRequestObject.model_validate(render_for_operators(one)) for one in page.items]
    return Listed[OperatorsRequestObject].of(data, has_more=page.has_more)


@router.get("/{request_id}", summary="Show one request", dependencies=[NoQuery])
async def get_request(request_id: RequestId, gateway: GatewayDep) -> OperatorsRequestDetail:
    """Find a request by the gateway's id, the client's own (the newest of several), or the
    generation's id.
    """
    async with gateway.operators_database.operator() as session:
        detail = await queries.find_any(session, request_id)
    return OperatorsRequestDetail.model_validate(
        render_for_operators(detail.request) | render_outcome(detail)
    )
