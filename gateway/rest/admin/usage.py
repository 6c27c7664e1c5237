"""Usage reports over one tenant or over all."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Response
from fastapi import Query as InQuery
from pydantic import BaseModel, Field, JsonValue

from gateway.billing import usage
from gateway.bootstrap import Gateway
from gateway.rest.admin.dependencies import reading_tenant
from gateway.rest.admin.schemas import Query, with_example
from gateway.rest.dependencies import GatewayDep
from gateway.rest.usage import report_answer

router = APIRouter(tags=["admin: usage"])
SUMS: dict[str, JsonValue] = {
    "requests": 4,
    "images": 4,
    "input_tokens": 52,
    "output_tokens": 784,
    "cost_usd": "0.023680000",
}


class UsageSums(BaseModel):
    """Sums over ledger entries."""

    requests: int
    images: int
    input_tokens: int
    output_tokens: int
    cost_usd: str


class UsageRowObject(UsageSums):
    """The sums of one group, with the fields of `group_by`."""

    day: str | None = None
    model: str | None = None
    requested_model: str | None = None
    key: str | None = None
    user: str | None = None
    tenant: str | None = None


class UsageReportObject(BaseModel):
    """A usage report."""

    model_config = with_example(
        object="usage_report",
        currency="usd",
        start="2026-11-01T00:00:00+00:00",
        end="2026-11-21T09:35:00+00:00",
        group_by=["tenant"],
        data=[{"tenant": "acme", **SUMS}],
        total=SUMS,
    )

    object: Literal["usage_report"] = "usage_report"
    currency: Literal["usd"] = "usd"
    start: str
    end: str
    group_by: list[str]
    data: list[UsageRowObject]
    total: UsageSums


class UsageQuery(Query):
    """What to report."""

    start: str | None = Field(None, description="ISO date or date-time. Default: this month.")
    end: str | None = Field(None, description="ISO date (included) or date-time. Default: now.")
    group_by: str = Field(
        "", description=f"Any of {', '.join(usage.GROUP_FIELDS)}.", examples=["tenant,model"]
    )
    format: Literal["json", "csv"] = "json"
    tenant: UUID | None = Field(None, description="Only this tenant, in days of its time zone.")
    livemode: bool = Field(default=True, description="false: what test keys used.")


@router.get(
    "/usage",
    summary="What was used and what it cost",
    response_class=Response,
    responses={
        200: {"model": UsageReportObject, "content": {"text/csv": {"example": "tenant,requests…"}}}
    },
)
async def get_usage(gateway: GatewayDep, query: Annotated[UsageQuery, InQuery()]) -> Response:
    """Sums over the ledger of one tenant, or of all: days are then those of each tenant's own time
    zone, and the bounds those of UTC. At most 10,000 rows.
    """
    group_by = usage.parse_group_by(query.group_by, allowed=usage.GROUP_FIELDS)
    report = await _report(gateway, query, group_by)
    return report_answer(report, query.format)


async def _report(
    gateway: Gateway, query: UsageQuery, group_by: tuple[usage.GroupField, ...]
) -> usage.UsageReport:
    if query.tenant is None:
        period = usage.parse_period(query.start, query.end, "UTC")
        async with gateway.database.operator() as session:
            return await usage.operator_report(
                session, livemode=query.livemode, period=period, group_by=group_by
            )
    async with reading_tenant(gateway, query.tenant, param="tenant") as tenant_session:
        zone = await usage.tenant_zone(tenant_session, query.tenant)
        return await usage.tenant_report(
            tenant_session,
            query.tenant,
            livemode=query.livemode,
            period=usage.parse_period(query.start, query.end, zone),
            group_by=group_by,
        )
