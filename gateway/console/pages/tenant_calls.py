"""The calls behind an amount of a tenant's usage."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from gateway.billing import call_list, usage
from gateway.console import periods
from gateway.console.pages.tenant_usage import CALLS, OWNERS, PATH, UsageForm, read_filters
from gateway.console.portal import UsagePortal
from gateway.console.render import Crumb
from gateway.console.report_forms import CallsFields
from gateway.db.searches import searching
from gateway.identity.viewers import Permission

PAGE_SIZE = 50
CREDENTIALS = {"sandbox": "Sandbox", **dict(OWNERS)}

router = APIRouter()


class UsageCallsForm(CallsFields, UsageForm):
    """The filters of the list, all in the address."""


@router.get(CALLS)
async def show_calls(portal: UsagePortal, form: Annotated[UsageCallsForm, Query()]) -> Response:
    """List calls, newest first, with the exact cost of each."""
    caller = await portal.caller(whole_tenant=True)
    form.mode = portal.mode
    report = form.report(UsageForm)
    async with portal.reading(Permission.USAGE_READ, is_report=True) as session, searching():
        own_zone = await usage.tenant_zone(session, caller.tenant_id)
        zone = await usage.report_zone(session, form.zone or None, own_zone)
        days = form.days(zone, longest=periods.MAX_LISTED_DAYS)
        filters = await read_filters(session, caller, report)
        found = await call_list.list_calls(
            session,
            caller,
            form.call_filter(filters),
            days.period,
            limit=PAGE_SIZE,
            after=form.after,
        )
    return portal.page(
        "calls.html",
        crumbs=[Crumb("Usage", report.address(PATH))],
        **form.context(found, days, days.zone),
        credentials=CREDENTIALS,
        request_path="/console/portal/requests",
        request_query=f"?mode={portal.mode}",
        shows_tenants=False,
        sees_users=caller.user_id is None,
    )
