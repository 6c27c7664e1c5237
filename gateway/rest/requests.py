"""The request log of a tenant: lists of requests, and single requests by any of their ids."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from gateway.billing.usage import parse_moment, tenant_zone
from gateway.request_ids import CLIENT_ID, REQUEST_ID
from gateway.request_log import queries
from gateway.request_log.queries import RequestFilter
from gateway.request_log.rendering import render_outcome, render_request
from gateway.rest import calls
from gateway.rest.dependencies import GatewayDep, UsageReader
from gateway.rest.schemas import IN_DIGITS, PageLimit

router = APIRouter(tags=["requests"])
SAFE_ID = f"^{CLIENT_ID.pattern}$"
RequestId = Annotated[
    str,
    Path(
        description="The gateway's id (`X-Request-Id`), the client's own, or a generation's id.",
        examples=["req_019aa5f64d005c0f6e0f9c1d"],
        json_schema_extra={"pattern": SAFE_ID},
    ),
]
EXAMPLE: dict[str, JsonValue] = {
    "id": "req_019aa5f64d005c0f6e0f9c1d",
    "object": "request",
    "at": "2026-11-28T09:20:00.000Z",
    "livemode": True,
    "client_request_id": "order-17",
    "trace_id": None,
    "method": "POST",
    "route": "/v1/images/generations",
    "tool": None,
    "status": 504,
    "error_code": "outcome_unknown",
    "error_param": None,
    "reason": "unknown",
    "api_key_id": "019aa5f4-2b00-7000-8000-000000000000",
    "key_name": "shop",
    "key_last4": "x7Qa",
    "user_id": None,
    "user": None,
    "requested_model": "gpt-image-2",
    "served_model": "gpt-image-2",
    "generation_id": "019aa5f6-4d00-7000-8000-000000000000",
    "replayed": False,
    "provider": "openai",
    "credential": "house",
    "provider_status": 500,
    "provider_request_id": "req_1c0f6e0f9c1d4e2b8a7d3f61aa5f6e0f",
    "provider_milliseconds": 1830,
    "provider_calls": 1,
    "model_version": None,
    "cost_usd": None,
    "cost_status": "pending",
    "milliseconds": 1841,
}
OUTCOME_EXAMPLE: dict[str, JsonValue] = {
    "generation": {
        "id": "019aa5f6-4d00-7000-8000-000000000000",
        "state": "unknown",
        "outcome": "ambiguous",
        "held_usd": "0.006140000",
        "cost_usd": None,
        "is_estimate": False,
        "admitted_at": "2026-11-28T09:20:00.011Z",
        "deadline_at": "2026-11-28T09:26:00.011Z",
        "resolved_at": None,
        **calls.EXAMPLE,
        "ledger": [
            {
                "at": "2026-11-28T09:20:00.011Z",
                "kind": "hold",
                "amount_usd": "0.006140000",
                "images": 0,
                "input_tokens": 0,
                "output_tokens": 0,
            }
        ],
    },
    "others": 0,
}
"""Examples for the documentation."""


class RequestObject(BaseModel):
    """One request. Fields that were not reached, or are not known, are null."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    id: str
    object: Literal["request"] = "request"
    at: datetime = Field(description="Time of arrival.")
    livemode: bool | None
    client_request_id: str | None = Field(description="The client's `X-Request-Id`.")
    trace_id: str | None = Field(description="Trace id of its `traceparent`.")
    method: str
    route: str
    tool: str | None = Field(description="The MCP tool that was called.")
    status: int = Field(description="HTTP status; tool errors have 200.")
    error_code: str | None = Field(
        description="The error code sent; `client_disconnected` if the client left early."
    )
    error_param: str | None
    reason: str | None = Field(
        description="Cause of the error: `budget tenant/month`, `limit key-images`, or the "
        "provider's complaint: `credential`, `quota`, `moderation`, `rate_limited`, …"
    )
    api_key_id: UUID | None = Field(description="Id of the first key of a rolled line.")
    key_name: str | None
    key_last4: str | None
    user_id: UUID | None
    user: str | None
    requested_model: str | None
    served_model: str | None
    generation_id: UUID | None
    replayed: bool = Field(description="True if an earlier purchase was returned.")
    provider: str | None
    credential: str | None = Field(
        description="Owner of the provider key: `house`, `tenant`, `user`."
    )
    provider_status: int | None
    provider_request_id: str | None = Field(
        description="The provider's id of the call, for its support: `x-request-id`, or Gemini's "
        "`responseId`."
    )
    provider_milliseconds: int | None
    provider_calls: int | None = Field(
        description="Calls that reached a provider for it: one for each image at some vendors, and "
        "those of fallbacks."
    )
    model_version: str | None = Field(
        description="The model that the vendor says it used, where it says so."
    )
    cost_usd: str | None = Field(description="Cost as known when the request ended.")
    cost_status: Literal["actual", "estimated", "pending"] | None
    milliseconds: int


class LedgerLineObject(BaseModel):
    """One ledger entry."""

    at: datetime
    kind: Literal["hold", "post", "post_est", "void", "adjust"]
    amount_usd: str
    images: int
    input_tokens: int
    output_tokens: int


class PurchaseObject(calls.CallsObject):
    """The generation in the ledger, in its current state."""

    id: UUID
    state: Literal["held", "unknown", "posted", "posted_est", "void"]
    outcome: str | None
    held_usd: str
    cost_usd: str | None = Field(description="null while the outcome is open.")
    is_estimate: bool
    admitted_at: datetime
    deadline_at: datetime
    resolved_at: datetime | None
    ledger: list[LedgerLineObject]


class RequestDetailObject(RequestObject):
    """One request with its purchase."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE | OUTCOME_EXAMPLE]})

    generation: PurchaseObject | None
    others: int = Field(description="Number of other requests with this id.")


class RequestList(BaseModel):
    """Requests, newest first."""

    object: Literal["list"] = "list"
    data: list[RequestObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class RequestQuery(BaseModel):
    """Filters of the request list."""

    model_config = ConfigDict(extra="forbid")

    limit: PageLimit = 20
    after: str | None = Field(
        None, pattern=f"^{REQUEST_ID.pattern}$", description="The previous page's `last_id`."
    )
    status: Annotated[int, Field(ge=100, le=599), IN_DIGITS] | None = None
    error_code: str | None = Field(None, pattern="^[a-z_]{1,64}$")
    model: str | None = Field(
        None, pattern=r"^[!-~]{1,100}$", description="Requested or served model."
    )
    key: UUID | None = Field(
        None, description="Only requests of this key and its rolled successors."
    )
    client_request_id: str | None = Field(None, pattern=SAFE_ID)
    generation_id: UUID | None = None
    start: str | None = Field(
        None, description="ISO date (of the tenant's time zone) or date-time."
    )
    end: str | None = Field(None, description="ISO date (included) or date-time.")

    def chosen(self, zone: str) -> RequestFilter:
        """Build the filter, with days in this time zone.

        Raises:
            InvalidRequest: `start` or `end` is not ISO 8601.
        """
        start, end = self.start, self.end
        return RequestFilter(
            status=self.status,
            error_code=self.error_code,
            model=self.model,
            api_key_id=self.key,
            client_request_id=self.client_request_id,
            generation_id=self.generation_id,
            start=parse_moment(start, "start", zone, is_end=False) if start else None,
            end=parse_moment(end, "end", zone, is_end=True) if end else None,
        )


@router.get("/v1/requests", summary="List requests")
async def list_requests(
    gateway: GatewayDep, caller: UsageReader, query: Annotated[RequestQuery, Query()]
) -> RequestList:
    """List requests, newest first; the next page begins `after` the `last_id` of this one. A
    request appears a second or two after its answer, and is kept as long as the operator keeps the
    log.

    A key of one user sees that user's requests, any other key the whole tenant's; test and live
    requests never mix.
    """
    async with gateway.database.tenant(caller.tenant_id) as session:
        zone = await tenant_zone(session, caller.tenant_id)
        page = await queries.list_own(
            session, caller, query.chosen(zone), limit=query.limit, after=query.after
        )
    data = [RequestObject.model_validate(render_request(one)) for one in page.items]
    return RequestList(
        data=data,
        has_more=page.has_more,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )


@router.get("/v1/requests/{request_id}", summary="Show one request")
async def get_request(
    request_id: RequestId, gateway: GatewayDep, caller: UsageReader
) -> RequestDetailObject:
    """Find a request by the gateway's id, the client's own (the newest of several), or the
    generation's id; includes the generation's current state in the ledger.
    """
    async with gateway.database.tenant(caller.tenant_id) as session:
        detail = await queries.find_own(session, caller, request_id)
    return RequestDetailObject.model_validate(
        render_request(detail.request) | render_outcome(detail)
    )
