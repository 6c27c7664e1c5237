"""The operators' cost explorer: a GET form, a chart, a table and a file, each by its address."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from gateway.billing.usage_queries import UsageFilters
from gateway.bootstrap import Gateway
from gateway.console.cost_explorer import (
    GROUPINGS,
    MAX_HOURLY_DAYS,
    MAX_SHOWN,
    NAMES,
    Grouping,
    Question,
    days_of,
    explore,
    in_sentence,
)
from gateway.console.dependencies import OperatorReader
from gateway.console.render import page
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
from gateway.console.shell import shell_of
from gateway.db.engine import OperatorSession
from gateway.db.pools import Beside
from gateway.errors import InvalidRequest
from gateway.identity.viewers import Viewer
from gateway.rest.dependencies import GatewayDep
from gateway.rest.usage import UsageQuery, find_filters, report_answer
from gateway.tenancy import tenants
from gateway.tenancy.lookups import KeyScope
from gateway.tenancy.tenants import Tenant

PATH = "/console/costs"
CALLS = "/console/costs/calls"
MAX_TENANTS = 200
"""Tenants offered in the form; any other is named by its address."""
OWNERS = (("house", "House credential"), ("tenant", "Tenant's own"), ("user", "User's own"))

router = APIRouter()


class CostForm(ReportForm):
    """The fields of the form, all in the address. An empty field is none."""

    path = PATH
    calls_path = CALLS
    narrower: ClassVar[Mapping[Grouping, Grouping]] = {"model": "tenant", "tenant": "key"}

    tenant: str = ""
    mode: str = "live"

    def livemode(self) -> bool:
        """Read the mode.

        Raises:
            InvalidRequest: it is none.
        """
        return _one_of("mode", self.mode, ("live", "test")) == "live"


@router.get(PATH)
async def costs(
    viewer: OperatorReader,
    gateway: GatewayDep,
    request: Request,
    form: Annotated[CostForm, Query()],
) -> Response:
    """Show costs by group and day, or send them as a file."""
    database = gateway.database.beside(Beside.OPERATORS_REPORTS)
    async with database.operator() as session:
        question = await _question(session, form, viewer)
        if form.format == "csv":
            query = question.query(question.days, question.columns)
            return await report_answer(session, query, UsageQuery.model_validate({"format": "csv"}))
        offered = await tenants.list_page(session, limit=MAX_TENANTS)
        found = await explore(
            session,
            question,
            lambda moment: _of_moment(form, question, moment),
            has_few_groups=question.group == "tenant" and not offered.has_more,
        )
    return page(
        shell_of(viewer, request),
        "costs.html",
        title="Costs",
        lead=_lead(question, form),
        form=form,
        found=found,
        lines=[report_line(form, question, row) for row in found.rows],
        totals=total_links(form, question),
        group_name=NAMES[question.group],
        heading=f"By {in_sentence(NAMES[question.group])}",
        shows_ids=question.group in {"key", "user"},
        days=question.days,
        max_shown=MAX_SHOWN,
        can_be_hourly=question.days.number <= MAX_HOURLY_DAYS,
        choices=_choices(gateway, form, [(one.id, one.name) for one in offered.items]),
        period_links=form.period_links(),
    )


async def _question(session: OperatorSession, form: CostForm, viewer: Viewer) -> Question:
    """Read the form.

    Raises:
        InvalidRequest: a field has an unknown value; the message names it.
        NotFound: there is no such tenant, key or user.
    """
    tenant = await find_tenant(session, form)
    tenant_id = None if tenant is None else tenant.id
    zone = viewer.time_zone if tenant is None else tenant.time_zone
    livemode = form.livemode()
    unit = parse_unit(form.by)
    days = form.days(zone, is_of_each=tenant is None and unit != "hour")
    if unit == "hour" and days.number > MAX_HOURLY_DAYS:
        raise InvalidRequest(
            f"Hours are shown for at most {MAX_HOURLY_DAYS} days; {days.number} requested. Choose "
            "a shorter period, or days.",
            param="by",
        )
    return Question(
        tenant_id,
        await read_filters(session, form, tenant_id, livemode=livemode),
        livemode,
        days,
        group=parse_grouping(form.group, GROUPINGS),
        time=unit,
        compares=_one_of("compare", form.compare, ("yes", "no")) == "yes",
    )


async def find_tenant(session: OperatorSession, form: CostForm) -> Tenant | None:
    """Find the tenant that the form names; None: all of them.

    Raises:
        NotFound: there is no such tenant.
    """
    return await tenants.find(session, form.tenant) if form.tenant else None


async def read_filters(
    session: OperatorSession, form: CostForm, tenant_id: UUID | None, *, livemode: bool
) -> UsageFilters:
    """Resolve the filters, among a tenant's or (None) all keys and users.

    Raises:
        NotFound: there is no such key or user.
        InvalidRequest: several match.
    """
    found = await find_filters(
        session,
        tenant_id,
        form.key or None,
        form.user or None,
        form.model or None,
        among=KeyScope(livemode=livemode),
    )
    return replace(
        found,
        provider=form.provider or None,
        operation=form.operation or None,
        credential_owner=form.owner or None,
        requested_models=(form.requested_model,) if form.requested_model else None,
    )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InvalidRequest(f"{name} must be one of {', '.join(allowed)}.", param=name)
    return value


def _lead(question: Question, form: CostForm) -> str:
    mode = "live calls" if question.livemode else "test calls"
    is_of_each = question.tenant_id is None and question.time != "hour"
    whose = "each tenant's time zone" if is_of_each else question.days.zone
    before = f", compared with {question.days.before.text}" if question.compares else ""
    unit = "Hours and days" if form.by == "hour" else "Days"
    return f"{question.days.text}, {mode}{before}. {unit} are those of {whose}."


def _of_moment(form: CostForm, question: Question, moment: str) -> str:
    """The address of one day of the chart: its hours; of a month, its days."""
    first, last = question.counted.clamp(*days_of(moment))
    return form.address(start=first, end=last, by="hour" if first == last else "day")


def _choices(gateway: Gateway, form: CostForm, offered: list[tuple[UUID, str]]) -> Options:
    """The options of each select; what the address names is offered too."""
    own: Options = {
        "group": [(name, text) for name, text in NAMES.items()],
        "tenant": [("", "All tenants"), *((str(one), name) for one, name in offered)],
        "by": [("month", "Months"), ("day", "Days"), ("hour", "Hours")],
        "mode": [("live", "Live"), ("test", "Test")],
    }
    return with_own(own | usual_options(gateway.core.catalog.models, OWNERS), form)
