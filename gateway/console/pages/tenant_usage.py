"""A tenant's usage: a GET form, a chart, a table and a file, each by its address."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

from fastapi import APIRouter, Query
from starlette.responses import Response

from gateway.billing import usage
from gateway.billing.usage_queries import UsageFilters
from gateway.console.cost_explorer import (
    GROUPINGS,
    MAX_HOURLY_DAYS,
    MAX_SHOWN,
    NAMES,
    UNITS,
    Grouping,
    Question,
    days_of,
    explore,
)
from gateway.console.periods import Days
from gateway.console.portal import Portal, UsagePortal
from gateway.console.report_forms import (
    Options,
    ReportForm,
    parse_grouping,
    parse_unit,
    report_line,
    total_links,
    usual_options,
    with_own,
)
from gateway.db.engine import TenantSession
from gateway.domain import Caller
from gateway.errors import InvalidRequest
from gateway.identity.transactions import reading_tenant
from gateway.identity.viewers import Permission
from gateway.request_record import note_error
from gateway.rest.usage import UsageQuery, find_filters, report_answer
from gateway.tenancy.lookups import KeyScope

PATH = "/console/usage"
CALLS = "/console/usage/calls"
OWNERS = (("house", "The gateway's"), ("tenant", "Your own"), ("user", "A user's own"))
OFFERED = tuple(name for name in GROUPINGS if name != "tenant")
TOO_MUCH = {
    "report_too_large": "It has too many groups, or takes too long. Narrow it: choose a shorter "
    "period, one model, key or user, or another grouping. Sizes, qualities, statuses and hours of "
    "keys and users are counted call by call; the others are kept as sums.",
    "report_archived": "",
}
"""Refusals of a report that the form can mend, in a person's words; "": in the report's own."""

router = APIRouter()


class UsageForm(ReportForm):
    """The fields of the form, all in the address. An empty field is none."""

    path = PATH
    calls_path = CALLS
    narrower: ClassVar[Mapping[Grouping, Grouping]] = {"model": "key"}

    zone: str = ""


@router.get(PATH)
async def show_usage(portal: UsagePortal, form: Annotated[UsageForm, Query()]) -> Response:
    """Show usage by group and time, or send it as a file."""
    form.mode = portal.mode
    caller = await portal.caller(whole_tenant=True)
    async with reading_tenant(
        portal.gateway, portal.viewer, Permission.USAGE_READ, is_report=True
    ) as session:
        question = await read_question(session, portal, caller, form)
        if form.format == "csv":
            query = question.query(question.days, question.columns)
            return await report_answer(session, query, UsageQuery.model_validate({"format": "csv"}))
        if form.format:
            raise InvalidRequest("format must be csv.", param="format")
        link = _linker(form, question)
        found, refusal, status = None, "", 200
        try:
            found = await explore(session, question, lambda moment: link(*days_of(moment)))
        except InvalidRequest as error:
            if error.code not in TOO_MUCH:
                raise
            note_error(error)
            refusal, status = TOO_MUCH[error.code] or error.message, error.status
    days = question.days
    return portal.page(
        "tenant/usage.html",
        title="Usage",
        lead=_lead(question, caller),
        status=status,
        form=form,
        found=found,
        refusal=refusal,
        lines=[] if found is None else [report_line(form, question, row) for row in found.rows],
        totals=total_links(form, question),
        group_name=NAMES[question.group],
        days=days,
        max_shown=MAX_SHOWN,
        choices=_choices(portal, form, caller, days),
        sees_users=caller.user_id is None,
        period_links=form.period_links(),
    )


async def read_question(
    session: TenantSession, portal: Portal, caller: Caller, form: UsageForm
) -> Question:
    """Read the form, for what this caller may see.

    Raises:
        InvalidRequest: a field has an unknown value; the message names it.
        NotFound: there is no such key or user.
    """
    own_zone = await usage.tenant_zone(session, caller.tenant_id)
    zone = await usage.report_zone(session, form.zone or None, own_zone)
    days = form.days(zone)
    unit = parse_unit(form.by)
    if unit == "hour" and days.number > MAX_HOURLY_DAYS:
        raise InvalidRequest(
            f"Hours are shown for at most {MAX_HOURLY_DAYS} days; {days.number} requested. Choose "
            "a shorter period, or days.",
            param="by",
        )
    if form.compare not in {"yes", "no"}:
        raise InvalidRequest("compare must be yes or no.", param="compare")
    return Question(
        caller.tenant_id,
        await read_filters(session, caller, form),
        portal.livemode,
        days,
        group=parse_grouping(form.group, OFFERED),
        time=unit,
        compares=form.compare == "yes",
        zone=None if zone == own_zone else zone,
    )


async def read_filters(session: TenantSession, caller: Caller, form: UsageForm) -> UsageFilters:
    """Resolve the filters, among the keys and users that the caller may see.

    Raises:
        NotFound: there is no such key or user.
        InvalidRequest: several match.
    """
    among = KeyScope(user_id=caller.user_id, livemode=caller.livemode)
    found = await find_filters(
        session,
        caller.tenant_id,
        form.key or None,
        form.user or None,
        form.model or None,
        among=among,
    )
    return replace(
        found,
        user_id=caller.user_id or found.user_id,
        provider=form.provider or None,
        operation=form.operation or None,
        credential_owner=form.owner or None,
        requested_models=(form.requested_model,) if form.requested_model else None,
    )


def _linker(form: UsageForm, question: Question) -> Callable[[str, str], str]:
    """Build the addresses of what lies behind a part of the chart: days of a month, else calls."""

    def link(first: str, last: str) -> str:
        first, last = question.days.clamp(first, last)
        changes = {"start": first, "end": last}
        if question.time == "month":
            return form.address(by="day", **changes)
        return form.calls_address(question.days, zone=question.zone_of_calls, **changes)

    return link


def _lead(question: Question, caller: Caller) -> str:
    whose = "Your own calls" if caller.user_id is not None else "All calls"
    before = f", compared with {question.days.before.text}" if question.compares else ""
    mode = "live" if question.livemode else "test"
    unit = {"hour": "Hours and days", "day": "Days", "month": "Months and days"}[question.time]
    return (
        f"{whose} in {mode} mode, {question.days.text}{before}. "
        f"{unit} are those of {question.days.zone}."
    )


def _choices(portal: Portal, form: UsageForm, caller: Caller, days: Days) -> Options:
    """The options of each select; a value of the address that is none of them is offered too."""
    groups = [name for name in OFFERED if name != "user" or caller.user_id is None]
    units = [unit for unit in UNITS if unit != "hour" or days.number <= MAX_HOURLY_DAYS]
    own: Options = {
        "group": [(name, NAMES[name]) for name in groups],
        "by": [(unit, UNITS[unit]) for unit in units],
    }
    return with_own(own | usual_options(portal.gateway.core.catalog.models, OWNERS), form)
