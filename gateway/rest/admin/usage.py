"""Usage reports over one tenant or over all."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Response
from fastapi import Query as InQuery
from pydantic import Field

from gateway.billing import usage
from gateway.billing.usage_queries import GROUP_FIELDS, ReportQuery
from gateway.db.pools import Beside
from gateway.rest.admin.dependencies import reading_tenant
from gateway.rest.dependencies import GatewayDep
from gateway.rest.refusals import refused_with
from gateway.rest.usage import REPORT, UsageQuery, find_filters, grouped, report_answer
from gateway.tenancy.lookups import KeyScope

router = APIRouter(tags=["admin: usage"])


class OperatorsUsageQuery(UsageQuery):
    """Tenant, period, grouping and filters of a usage report."""

    group_by: str = grouped(GROUP_FIELDS)
    tenant: UUID | None = Field(None, description="Only this tenant, in days of its time zone.")
    livemode: bool = Field(default=True, description="false: usage of test keys.")


@router.get(
    "/usage",
    summary="Report usage and cost",
    response_class=Response,
    responses=REPORT | refused_with(404),
)
async def get_usage(
    gateway: GatewayDep, query: Annotated[OperatorsUsageQuery, InQuery()]
) -> Response:
    """Sum the ledger of one tenant, or of all: unless `time_zone` is given, days are then those of
    each tenant's time zone, and the bounds those of UTC.
    """
    group_by = usage.parse_group_by(query.group_by, allowed=GROUP_FIELDS)
    among = KeyScope(livemode=query.livemode)
    if query.tenant is None:
        async with gateway.database.beside(Beside.OPERATORS_REPORTS).operator() as session:
            asked = ReportQuery(
                None,
                await find_filters(session, None, query.key, query.user, query.model, among=among),
                query.livemode,
                usage.parse_period(
                    query.start,
                    query.end,
                    await usage.report_zone(session, query.time_zone, "UTC"),
                ),
                group_by,
                query.time_zone,
            )
            return await report_answer(session, asked, query)
    async with reading_tenant(
        gateway, query.tenant, param="tenant", work=Beside.OPERATORS_REPORTS
    ) as tenant_session:
        own_zone = await usage.tenant_zone(tenant_session, query.tenant)
        zone = await usage.report_zone(tenant_session, query.time_zone, own_zone)
        asked = ReportQuery(
            query.tenant,
            await find_filters(
                tenant_session, query.tenant, query.key, query.user, query.model, among=among
            ),
            query.livemode,
            usage.parse_period(query.start, query.end, zone),
            group_by,
            query.time_zone,
        )
        return await report_answer(tenant_session, asked, query)
