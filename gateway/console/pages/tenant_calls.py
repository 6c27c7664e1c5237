"""The calls behind an amount of a tenant's usage."""

from datetime import datetime
from typing import Annotated
from urllib.parse import urlencode
from uuid import UUID
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Query
from starlette.responses import Response

from gateway.billing import call_list, usage
from gateway.billing.call_list import CallFilter
from gateway.console import periods
from gateway.console.pages.tenant_usage import (
    CALLS,
    OWNERS,
    PATH,
    STATUSES,
    UsageForm,
    read_filters,
)
from gateway.console.portal import UsagePortal
from gateway.console.render import Crumb
from gateway.identity.viewers import Permission

PAGE_SIZE = 50
STATUS_NAMES = dict(STATUSES)
CREDENTIALS = {"sandbox": "Sandbox", **dict(OWNERS)}

router = APIRouter()


class CallsForm(UsageForm):
    """The filters of the list, all in the address."""

    size: str = ""
    quality: str = ""
    status: str = ""
    after: UUID | None = None

    def own_address(self, **changes: str) -> str:
        """Write the address of this list with some fields changed."""
        fields = self.model_dump(exclude={"format", "by", "group", "compare"}) | changes
        return f"{CALLS}?{urlencode({name: value for name, value in fields.items() if value})}"


@router.get(CALLS)
async def show_calls(portal: UsagePortal, form: Annotated[CallsForm, Query()]) -> Response:
    """List calls, newest first, with the exact cost of each."""
    caller = await portal.caller(whole_tenant=True)
    async with portal.reading(Permission.USAGE_READ, is_report=True) as session:
        own_zone = await usage.tenant_zone(session, caller.tenant_id)
        zone = await usage.report_zone(session, form.zone or None, own_zone)
        today = datetime.now(ZoneInfo(zone)).date()
        days = periods.parse_days(form.period, form.start, form.end, today, zone)
        filters = await read_filters(session, caller, form)
        found = await call_list.list_calls(
            session,
            caller,
            CallFilter(
                api_key_id=filters.key_id,
                user_id=filters.user_id,
                model=filters.model,
                requested_model=form.requested_model or None,
                provider=filters.provider,
                operation=filters.operation,
                credential=filters.credential_owner,
                size=form.size or None,
                quality=form.quality or None,
                status=form.status or None,
            ),
            days.period,
            limit=PAGE_SIZE,
            after=form.after,
        )
    usual = {"size": "", "quality": "", "status": "", "after": None}
    report = UsageForm(**form.model_dump(exclude=set(usual)))
    return portal.page(
        "tenant/calls.html",
        title="Calls",
        lead=f"Each call of {days.text} with its exact cost, as the ledger has it. Days are those "
        f"of {days.zone}.",
        crumbs=[Crumb("Usage", report.address(PATH))],
        form=form,
        found=found.items,
        newest=form.own_address(after="") if form.after else "",
        older=form.own_address(after=str(found.items[-1].id)) if found.has_more else "",
        chosen=_chosen(form),
        statuses=[("", "Any status"), *STATUSES, ("open", "Open: money still held")],
        status_names=STATUS_NAMES,
        credentials=CREDENTIALS,
        sees_users=caller.user_id is None,
    )


def _chosen(form: CallsForm) -> list[tuple[str, str, str]]:
    """Name each filter in force: its field, its value, and the list without it."""
    names = (
        *("key", "user", "model", "requested_model", "provider", "operation", "owner"),
        *("size", "quality"),
    )
    return [
        (name.replace("_", " "), getattr(form, name), form.own_address(**{name: "", "after": ""}))
        for name in names
        if getattr(form, name)
    ]
