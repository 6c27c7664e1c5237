"""The calls behind an amount of the operators' costs."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from gateway.billing import call_list, usage
from gateway.console import periods
from gateway.console.dependencies import OperatorReader
from gateway.console.pages.costs import CALLS, OWNERS, PATH, CostForm, find_tenant, read_filters
from gateway.console.render import Crumb, page
from gateway.console.report_forms import CallsFields
from gateway.console.shell import shell_of
from gateway.db.pools import Beside
from gateway.db.searches import searching
from gateway.rest.dependencies import GatewayDep

PAGE_SIZE = 50
CREDENTIALS = {"sandbox": "Sandbox", **dict(OWNERS)}

router = APIRouter()


class CostCallsForm(CallsFields, CostForm):
    """The filters of the list, all in the address. `zone`: that of its days, if not the usual."""

    zone: str = ""


@router.get(CALLS)
async def show_calls(
    viewer: OperatorReader,
    gateway: GatewayDep,
    request: Request,
    form: Annotated[CostCallsForm, Query()],
) -> Response:
    """List calls of all tenants, newest first, with the exact cost of each."""
    report = form.report(CostForm)
    database = gateway.database.beside(Beside.OPERATORS_REPORTS)
    async with database.operator() as session, searching():
        tenant = await find_tenant(session, form)
        usual_zone = viewer.time_zone if tenant is None else tenant.time_zone
        zone = await usage.report_zone(session, form.zone or None, usual_zone)
        is_of_each = tenant is None and not form.zone
        days = form.days(zone, is_of_each=is_of_each, longest=periods.MAX_LISTED_DAYS)
        period, own_days = days.period, None
        if is_of_each:
            own_days = days.own_days()
            period = own_days.period
        tenant_id = None if tenant is None else tenant.id
        livemode = form.livemode()
        filters = await read_filters(session, report, tenant_id, livemode=livemode)
        found = await call_list.list_calls_of_all(
            session,
            form.call_filter(filters),
            period,
            tenant_id=tenant_id,
            livemode=livemode,
            own_days=own_days,
            limit=PAGE_SIZE,
            after=form.after,
        )
    whose = days.zone if own_days is None else "each tenant's time zone"
    return page(
        shell_of(viewer, request),
        "calls.html",
        crumbs=[Crumb("Costs", report.address(PATH))],
        **form.context(found, days, whose),
        credentials=CREDENTIALS,
        request_path="/console/requests",
        request_query="",
        shows_tenants=tenant is None,
        sees_users=True,
    )
