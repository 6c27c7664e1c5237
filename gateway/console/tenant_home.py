"""The figures of a tenant's home: this month's costs, budgets, the last images, and alerts."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from gateway.billing import budgets, usage
from gateway.billing.budgets import Budget
from gateway.billing.usage_queries import Period, ReportQuery, UsageFilters
from gateway.catalog.loading import Catalog
from gateway.console.charts import Chart
from gateway.console.model_figures import draw_days, ending_models
from gateway.db.engine import TenantSession
from gateway.domain import Caller
from gateway.identity.viewers import Permission, Viewer
from gateway.library import history
from gateway.library.history import HostedImage
from gateway.request_log import queries as requests
from gateway.webhooks import deliveries
from gateway.webhooks.deliveries import FailingEndpoint

ALARMING_PERCENT = 80
CALLED_DAYS = 30
REJECTED_DAYS = 1
LAST_IMAGES = 8
MOST_USED = 8
"""Budgets of users and keys that Home shows."""
HUNDRED = 100


@dataclass(frozen=True, slots=True)
class EndingModel:
    """A model that its vendor shuts down soon, and the tenant's requests for it in 30 days."""

    id: str
    shutdown_date: date
    successor: str | None
    requests: int


@dataclass(frozen=True, slots=True)
class Alerts:
    """The things that a tenant should act on.

    `rejected_provider`: a provider that has refused the tenant's own key within a day.
    """

    budgets: tuple[Budget, ...]
    dying: tuple[EndingModel, ...]
    webhooks: tuple[FailingEndpoint, ...]
    rejected_provider: str | None

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to act on."""
        return not (self.budgets or self.dying or self.webhooks or self.rejected_provider)


@dataclass(frozen=True, slots=True)
class MonthFigures:
    """The costs of a month until today, in nano-USD, and the numbers beside them."""

    first: date
    today: date
    cost_nano: int
    today_nano: int
    requests: int
    failed_requests: int
    images: int
    open_nano: int
    chart: Chart


@dataclass(frozen=True, slots=True)
class Home:
    """All figures of the page. `images` is None for viewers who see none."""

    month: MonthFigures
    budgets: tuple[Budget, ...]
    alerts: Alerts
    images: tuple[HostedImage, ...] | None


async def read_home(
    session: TenantSession, viewer: Viewer, caller: Caller, catalog: Catalog
) -> Home:
    """Read the figures of one mode, as far as the viewer may see them.

    A tenant's member sees their own usage and images, and the budgets that apply to them;
    others see the budgets of the whole tenant, and the most used ones of users and keys.
    """
    zone = await usage.tenant_zone(session, caller.tenant_id)
    applying = await _budgets(session, viewer, caller)
    images = None
    if viewer.may(Permission.IMAGES_READ):
        page = await history.list_images(session, caller, limit=LAST_IMAGES)
        images = page.images
    return Home(
        month=await _month(session, caller, zone),
        budgets=tuple(applying),
        alerts=await _alerts(session, viewer, caller, catalog, applying),
        images=images,
    )


async def _budgets(session: TenantSession, viewer: Viewer, caller: Caller) -> list[Budget]:
    applying = await budgets.for_caller(session, caller)
    if viewer.own_user_id is not None or viewer.key is not None:
        return applying
    return [*applying, *await budgets.list_most_used(session, caller, limit=MOST_USED)]


async def _month(session: TenantSession, caller: Caller, zone: str) -> MonthFigures:
    """Read the month's costs by day and model: one report."""
    now = datetime.now(ZoneInfo(zone))
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    query = ReportQuery(
        caller.tenant_id,
        UsageFilters(user_id=caller.user_id),
        livemode=caller.livemode,
        period=Period(first.astimezone(UTC), now.astimezone(UTC) + timedelta(minutes=1)),
        group_by=("day", "model"),
        zone=zone,
    )
    report = await usage.report(session, query)
    by_model: dict[str, dict[date, int]] = defaultdict(dict)
    for row in report.rows:
        day = date.fromisoformat(row.group[0] or now.date().isoformat())
        by_model[row.group[1] or ""][day] = row.cost_nano
    days = [first.date() + timedelta(days=at) for at in range(now.day)]
    total, today = report.total, now.date()
    mode = "live" if caller.livemode else "test"
    return MonthFigures(
        first=days[0],
        today=today,
        cost_nano=total.cost_nano,
        today_nano=sum(costs.get(today, 0) for costs in by_model.values()),
        requests=total.requests,
        failed_requests=total.failed_requests,
        images=total.images,
        open_nano=total.open_nano,
        chart=draw_days(
            by_model,
            days,
            key="month",
            title="Cost by day and model",
            description="US dollars, this month",
            link=lambda day: f"/console/usage?start={day}&end={day}&mode={mode}",
        ),
    )


async def _alerts(
    session: TenantSession,
    viewer: Viewer,
    caller: Caller,
    catalog: Catalog,
    applying: Sequence[Budget],
) -> Alerts:
    failing: list[FailingEndpoint] = []
    if viewer.may(Permission.TENANT_READ):
        failing = await deliveries.list_failing(session, caller.tenant_id)
    return Alerts(
        budgets=tuple(budget for budget in applying if _is_alarming(budget)),
        dying=await _dying(session, caller, catalog),
        webhooks=tuple(failing),
        rejected_provider=await _rejected_provider(session, caller),
    )


def _is_alarming(budget: Budget) -> bool:
    used = budget.spent_nano + budget.held_nano
    return used * HUNDRED >= budget.limit_in_force_nano * ALARMING_PERCENT


async def _dying(
    session: TenantSession, caller: Caller, catalog: Catalog
) -> tuple[EndingModel, ...]:
    """Find the models that end soon and were asked for lately."""
    now = datetime.now(UTC)
    dying = ending_models(catalog, now.date())
    if not dying:
        return ()
    query = ReportQuery(
        caller.tenant_id,
        UsageFilters(user_id=caller.user_id, requested_models=tuple(dying)),
        livemode=caller.livemode,
        period=Period(now - timedelta(days=CALLED_DAYS), now + timedelta(minutes=1)),
        group_by=("requested_model",),
    )
    report = await usage.report(session, query)
    found = [
        EndingModel(
            model.id, model.shutdown_date, model.successor, row.requests + row.failed_requests
        )
        for row in report.rows
        if (model := dying.get(row.group[0] or "")) is not None and model.shutdown_date is not None
    ]
    return tuple(sorted(found, key=lambda one: (one.shutdown_date, one.id)))


async def _rejected_provider(session: TenantSession, caller: Caller) -> str | None:
    since = datetime.now(UTC) - timedelta(days=REJECTED_DAYS)
    return await requests.find_rejecting_provider(session, caller, since=since)
