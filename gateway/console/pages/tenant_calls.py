"""The calls behind an amount of a tenant's usage."""

from datetime import datetime
from typing import Annotated
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Query
from starlette.responses import Response

from gateway.billing import call_list, usage
from gateway.console import periods
from gateway.console.pages.tenant_usage import CALLS, OWNERS, PATH, UsageForm, read_filters
from gateway.console.portal import UsagePortal
from gateway.console.render import Crumb
from gateway.console.report_forms import STATUS_CHOICES, STATUSES, CallsFields
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
    report = UsageForm(**form.named())
    async with portal.reading(Permission.USAGE_READ, is_report=True) as session, searching():
        own_zone = await usage.tenant_zone(session, caller.tenant_id)
        zone = await usage.report_zone(session, form.zone or None, own_zone)
        today = datetime.now(ZoneInfo(zone)).date()
        days = periods.parse_days(
            form.period, form.start, form.end, today, zone, longest=periods.MAX_LISTED_DAYS
        )
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
        title="Calls",
        lead=f"Each call of {days.text} with its exact cost, as the ledger has it. Days are those "
        f"of {days.zone}.",
        crumbs=[Crumb("Usage", report.address(PATH))],
        form=form,
        found=found.items,
        pages=form.pages(found.items[-1].id if found.has_more else None),
        chosen=form.chosen(),
        statuses=STATUS_CHOICES,
        status_names=dict(STATUSES),
        credentials=CREDENTIALS,
        request_path="/console/portal/requests",
        request_query=f"?mode={portal.mode}",
        shows_tenants=False,
        sees_users=caller.user_id is None,
    )
