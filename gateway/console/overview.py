"""The figures of the operator's overview, each tile from one query.

They are of live calls. Spend comes from the sums of usage, in days of each tenant's time zone;
circuits are those of the process that answers.
"""

import calendar
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from gateway.billing import budget_watch, ledger, usage
from gateway.billing.budget_watch import WatchedBudget
from gateway.billing.ledger import OpenSum
from gateway.billing.model_askers import ModelAskers, list_askers
from gateway.billing.usage_queries import EVERYTHING, OwnDays, ReportQuery
from gateway.bootstrap import Gateway
from gateway.console.charts import Chart
from gateway.console.model_figures import draw_days, ending_models
from gateway.console.shared import Shared
from gateway.db.engine import OperatorSession
from gateway.db.pools import Beside
from gateway.load.circuits import TroubledCircuit
from gateway.request_log.figures import RequestFigures, figures

LIVE_SECONDS = 10
SLOW_SECONDS = 60
CHART_DAYS = 30
PACE_DAYS = 7
MAX_BUDGETS = 12
MAX_CALLERS = 5
HOURS = 24


@dataclass(frozen=True, slots=True)
class SpendFigures:
    """Costs in nano-USD. `before`: of the same days of the month before.

    `forecast`: this month's, if its other days cost what the last seven whole ones did.
    `latest`: the latest day of any tenant; where it is tomorrow already, it counts as today.
    """

    today: int
    yesterday: int
    month: int
    before: int
    forecast: int
    by_day: tuple[int, ...]
    chart: Chart
    first: date
    day: date
    latest: date


@dataclass(frozen=True, slots=True)
class DyingModel:
    """A model that its vendor shuts down soon, with its callers, the most frequent first."""

    id: str
    provider: str
    shutdown_date: date
    days: int
    successor: str | None
    callers: ModelAskers


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """The figures that change while one looks at them."""

    at: datetime
    spend: SpendFigures
    requests: RequestFigures
    held: OpenSum
    unknown: OpenSum
    estimated: OpenSum
    circuits: tuple[TroubledCircuit, ...]

    @property
    def is_unused(self) -> bool:
        """Tell whether there were no live calls lately: probably a new gateway."""
        return not (self.spend.month or self.spend.before or self.requests.requests)


@dataclass(frozen=True, slots=True)
class SlowFigures:
    """The figures that change by the hour."""

    budgets: tuple[WatchedBudget, ...]
    dying: tuple[DyingModel, ...]


class Overview:
    """The overview's figures, shared by all who look at it in this process."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.live = Shared(self._live, seconds=LIVE_SECONDS)
        self.slow = Shared(self._slow, seconds=SLOW_SECONDS)

    async def _live(self) -> LiveFigures:
        now = datetime.now(UTC)
        hour = now.replace(minute=0, second=0, microsecond=0)
        database = self._gateway.database.beside(Beside.OPERATORS_REPORTS)
        async with database.operator() as session:
            spend = await spend_figures(session, now.date())
            requests = await figures(
                session, None, start=hour - timedelta(hours=HOURS - 1), end=now
            )
            open_sums = {one.state: one for one in await ledger.sum_open(session) if one.livemode}
        return LiveFigures(
            at=now,
            spend=spend,
            requests=requests,
            held=open_sums["held"],
            unknown=open_sums["unknown"],
            estimated=open_sums["estimated"],
            circuits=tuple(self._gateway.pipeline.troubled_circuits()),
        )

    async def _slow(self) -> SlowFigures:
        database = self._gateway.database.beside(Beside.OPERATORS_REPORTS)
        async with database.operator() as session:
            budgets = await budget_watch.nearly_used(session, limit=MAX_BUDGETS)
            dying = await self._dying(session)
        return SlowFigures(tuple(budgets), dying)

    async def _dying(self, session: OperatorSession) -> tuple[DyingModel, ...]:
        today = datetime.now(UTC).date()
        dying = ending_models(self._gateway.core.catalog, today)
        callers: dict[str, ModelAskers] = {}
        if dying:
            callers = await list_askers(session, tuple(dying), of_each=MAX_CALLERS)
        return tuple(
            DyingModel(
                model.id,
                model.provider,
                model.shutdown_date,
                (model.shutdown_date - today).days,
                model.successor,
                callers.get(model.id, ModelAskers()),
            )
            for model in sorted(
                dying.values(), key=lambda one: (one.shutdown_date or today, one.id)
            )
            if model.shutdown_date is not None
        )


async def spend_figures(session: OperatorSession, today: date) -> SpendFigures:
    """Read the costs of this month and the month before, by day and model: one report."""
    first = (today.replace(day=1) - timedelta(days=1)).replace(day=1)
    start = min(first, today - timedelta(days=CHART_DAYS))
    days = OwnDays(start, today + timedelta(days=1))
    query = ReportQuery(
        *(None, EVERYTHING),
        livemode=True,
        period=days.period,
        group_by=("day", "model"),
        own_days=days,
    )
    by_model: dict[str, dict[date, int]] = defaultdict(dict)
    latest = today
    async for row in usage.export(session, query):
        found = date.fromisoformat(row.group[0] or today.isoformat())
        latest = max(latest, found)
        day = min(today, found)
        costs = by_model[row.group[1] or ""]
        costs[day] = costs.get(day, 0) + row.cost_nano
    return summed_up(by_model, today, latest)


def summed_up(
    by_model: Mapping[str, Mapping[date, int]], today: date, latest: date
) -> SpendFigures:
    """Sum up the costs of each model by day."""
    by_day: dict[date, int] = defaultdict(int)
    for costs in by_model.values():
        for day, cost in costs.items():
            by_day[day] += cost
    days = [today - timedelta(days=at) for at in reversed(range(CHART_DAYS))]
    month = sum(by_day[day] for day in _days_of(today.replace(day=1), today))
    last_end = today.replace(day=1) - timedelta(days=1)
    same = last_end.replace(day=min(today.day, last_end.day))
    pace = sum(by_day[today - timedelta(days=at)] for at in range(1, PACE_DAYS + 1))
    left = calendar.monthrange(today.year, today.month)[1] - today.day
    return SpendFigures(
        today=by_day[today],
        yesterday=by_day[today - timedelta(days=1)],
        month=month,
        before=sum(by_day[day] for day in _days_of(last_end.replace(day=1), same)),
        forecast=month + max(0, pace // PACE_DAYS - by_day[today]) + pace * left // PACE_DAYS,
        by_day=tuple(by_day[day] for day in days),
        chart=draw_days(
            by_model,
            days,
            key="spend",
            title="Spend by day and model",
            description=f"US dollars, the last {CHART_DAYS} days",
            link=lambda day: (
                f"/console/costs?start={day}&end={latest if day == today else day}&group=tenant"
            ),
        ),
        first=today.replace(day=1),
        day=today,
        latest=latest,
    )


def _days_of(first: date, last: date) -> list[date]:
    return [first + timedelta(days=at) for at in range((last - first).days + 1)]
