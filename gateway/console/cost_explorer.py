"""The cost explorer: sums of usage by group, compared with the period before, for any front page.

It reads usage reports alone, so that its amounts are those of every other report.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from operator import add
from typing import Literal, get_args
from uuid import UUID

from gateway.billing import usage
from gateway.billing.usage import UsageReport, UsageRow
from gateway.billing.usage_queries import GroupField, ReportQuery, UsageFilters
from gateway.console import formats, periods
from gateway.console.charts import USD, Chart, ChartData, Series, stacked_bars
from gateway.console.periods import Days
from gateway.db.engine import OperatorSession, TenantSession

Session = TenantSession | OperatorSession
Grouping = Literal[
    "model",
    "tenant",
    "user",
    "key",
    "provider",
    "operation",
    "credential_owner",
    "requested_model",
    "size",
    "quality",
    "status",
]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)
NAMES: Mapping[Grouping, str] = {
    "model": "Model",
    "tenant": "Tenant",
    "user": "User",
    "key": "API key",
    "provider": "Provider",
    "operation": "Operation",
    "credential_owner": "Credential owner",
    "requested_model": "Requested model",
    "size": "Size",
    "quality": "Quality",
    "status": "Status",
}
FEW: frozenset[Grouping] = frozenset(
    {
        *("model", "requested_model", "provider", "operation", "credential_owner"),
        *("size", "quality", "status"),
    }
)
"""Groupings of which there are few groups, so that one report by time and group is small."""
IDS: Mapping[Grouping, tuple[int, int]] = {"tenant": (0, 1), "user": (0, 1), "key": (1, 0)}
"""For groups with a name and an id: their positions in a report's row."""
MAX_DRAWN = 7
"""Groups with a colour of their own; the rest is drawn as one."""
MOST_STACKED = 200
MAX_SHOWN = 100
MAX_HOURLY_DAYS = 3
TimeUnit = Literal["hour", "day", "month"]
UNITS: Mapping[TimeUnit, str] = {"hour": "Hours", "day": "Days", "month": "Months"}
OTHERS = "Others"
NONE = "(none)"
ALL = "*"
"""The key of all groups together, where they are too many to be read one by one."""
_NOTHING = UsageRow(())


@dataclass(frozen=True, slots=True)
class Question:
    """The question to the explorer. `tenant_id` None: all tenants, in each one's own days."""

    tenant_id: UUID | None
    filters: UsageFilters
    livemode: bool
    days: Days
    group: Grouping
    time: TimeUnit = "day"
    compares: bool = True
    zone: str | None = None

    def query(self, days: Days, group_by: tuple[GroupField, ...]) -> ReportQuery:
        """Build the report of some days."""
        zone, period, own_days = self.zone_of_hours or self.zone, days.period, None
        if self.tenant_id is None and self.zone_of_hours is None:
            own_days = days.own_days()
            period = own_days.period
        return ReportQuery(
            self.tenant_id, self.filters, self.livemode, period, group_by, zone, own_days
        )

    @property
    def zone_of_hours(self) -> str | None:
        """The time zone of the hours of all tenants: those of several would not line up."""
        is_hourly = self.tenant_id is None and self.time == "hour"
        return self.days.zone if is_hourly else None

    @property
    def zone_of_calls(self) -> str:
        """The time zone in which the list of calls has these days; "": its usual one."""
        return self.zone_of_hours or self.zone or ""

    @property
    def counted(self) -> Days:
        """The days that count: of all tenants also tomorrow, where it is tomorrow already."""
        if self.tenant_id is not None or self.zone_of_hours is not None:
            return self.days
        return replace(self.days, last=self.days.own_days().last)

    @property
    def columns(self) -> tuple[GroupField, ...]:
        """The groups of the file."""
        return (self.time, self.group)


@dataclass(frozen=True, slots=True)
class ExplorerRow:
    """One group: its name and id (or the name again), and its sums now and before."""

    name: str
    id: str
    now: UsageRow
    before: UsageRow


@dataclass(frozen=True, slots=True)
class Exploration:
    """The answer: groups by their cost, dearest first, their totals, and the chart."""

    rows: tuple[ExplorerRow, ...]
    number: int
    total: UsageRow
    before: UsageRow
    chart: Chart


async def explore(
    session: Session,
    question: Question,
    link: Callable[[str], str] | None = None,
    *,
    has_few_groups: bool = False,
) -> Exploration:
    """Answer a question; `link` makes the address of what lies behind a day or hour.

    `has_few_groups`: a single report by time and group is known to be small.

    Raises:
        InvalidRequest: the report has too many groups or takes too long (`report_too_large`).
    """
    nothing = _Sums({}, {}, _NOTHING)
    is_small = has_few_groups or question.group in FEW
    before = nothing
    if question.compares:
        days = question.days.before
        before = await _sums(session, question, days, is_small=is_small, stacks=False)
        # As few groups are expected as before; more than a report holds are read in two again.
        is_small = is_small or 0 < len(before.by_group) <= _most_stacked(question, days)
    now = await _sums(session, question, question.days, is_small=is_small, stacks=True)
    names = before.by_group | now.by_group
    rows = sorted(
        (
            ExplorerRow(
                *_name(question.group, row),
                now.by_group.get(key, _NOTHING),
                before.by_group.get(key, _NOTHING),
            )
            for key, row in names.items()
        ),
        key=lambda row: (-row.now.cost_nano, -row.before.cost_nano, row.name),
    )
    return Exploration(
        rows=tuple(rows[:MAX_SHOWN]),
        number=len(rows),
        total=now.total,
        before=before.total,
        chart=_chart(question, rows, now.by_time, before.by_time, link),
    )


@dataclass(frozen=True, slots=True)
class _Sums:
    """The sums of each group, the cost of each group in each hour or day, and those of all."""

    by_group: dict[str, UsageRow]
    by_time: dict[str, dict[str, int]]
    total: UsageRow


async def _sums(
    session: Session, question: Question, days: Days, *, is_small: bool, stacks: bool
) -> _Sums:
    """Read the sums of some days, by one report if it is small.

    Of many groups, or unless it `stacks` them, only the costs of all together are read by time,
    under the key `ALL`.

    Raises:
        InvalidRequest: there are too many groups or it takes too long (`report_too_large`).
    """
    time, group = question.time, question.group
    if is_small:
        stacked = await usage.report(session, question.query(days, (time, group)))
        if not stacked.has_more:
            return _Sums(_by_group(group, stacked), _by_time(group, stacked), stacked.total)
    report = await usage.whole_report(session, question.query(days, (group,)))
    is_stacked = stacks and not is_small and len(report.rows) <= _most_stacked(question, days)
    columns: tuple[GroupField, ...] = (time, group) if is_stacked else (time,)
    timed = await usage.report(session, question.query(days, columns))
    if timed.has_more:
        timed = await usage.whole_report(session, question.query(days, (time,)))
    return _Sums(_by_group(group, report), _by_time(group, timed), report.total)


def _most_stacked(question: Question, days: Days) -> int:
    """Return the number of groups of which a report by time and group is small in any case."""
    return min(MOST_STACKED, usage.MAX_ROWS // len(_moments(question, days)))


def _by_group(group: Grouping, report: UsageReport) -> dict[str, UsageRow]:
    """Sum up the rows of a report, whose last columns are the group's, by group."""
    sums: dict[str, UsageRow] = {}
    first = len(report.query.group_by) - 1
    for row in report.rows:
        rest = row.group[first:]
        key = _key(group, rest)
        sums[key] = _add(rest, sums.get(key), row)
    return sums


def _by_time(group: Grouping, report: UsageReport) -> dict[str, dict[str, int]]:
    """Sum up the costs of a report by time, and by group if it has any."""
    sums: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    has_groups = group in report.query.group_by
    for row in report.rows:
        key = _key(group, row.group[1:]) if has_groups else ALL
        sums[row.group[0] or ""][key] += row.cost_nano
    return sums


def _key(group: Grouping, texts: usage.Group) -> str:
    return texts[IDS.get(group, (0, 0))[1]] or ""


def _name(group: Grouping, row: UsageRow) -> tuple[str, str]:
    """Return a group's name and its id."""
    at_name, at_id = IDS.get(group, (0, 0))
    found = row.group[at_id] or ""
    return row.group[at_name] or (f"…{found[-4:]}" if found else NONE), found


def _add(group: usage.Group, first: UsageRow | None, second: UsageRow) -> UsageRow:
    if first is None:
        return UsageRow(group, *second.numbers)
    return UsageRow(group, *map(add, first.numbers, second.numbers))


def _chart(
    question: Question,
    rows: Sequence[ExplorerRow],
    now: Mapping[str, Mapping[str, int]],
    before: Mapping[str, Mapping[str, int]],
    link: Callable[[str], str] | None,
) -> Chart:
    expected = _moments(question, question.days)
    # A tenant's day may begin before the period's first, or end after its last.
    moments = sorted({*expected, *now})
    unit = question.time
    return stacked_bars(
        ChartData(
            key="cost",
            title=f"Cost by {unit} and {in_sentence(NAMES[question.group])}",
            description=f"US dollars, {question.days.text}",
            labels=tuple(_label(question, moment) for moment in moments),
            series=_series(rows, moments, now),
            unit=USD,
            before=_before(question, moments, expected, before) if question.compares else None,
            links=() if link is None else tuple(link(moment) for moment in moments),
            label_name=unit.capitalize(),
        )
    )


def _series(
    rows: Sequence[ExplorerRow], moments: Sequence[str], now: Mapping[str, Mapping[str, int]]
) -> tuple[Series, ...]:
    """Give the dearest groups a series each, and the rest one; their sum is the whole cost."""
    drawn = [row for row in rows if row.now.cost_nano > 0]
    if any(ALL in costs for costs in now.values()):
        drawn = []
    series = [
        Series(row.name, tuple(now.get(moment, {}).get(row.id, 0) for moment in moments))
        for row in (drawn if len(drawn) <= MAX_DRAWN + 1 else drawn[:MAX_DRAWN])
    ]
    totals = [sum(now.get(moment, {}).values()) for moment in moments]
    rest = [
        total - sum(int(one.values[at] or 0) for one in series) for at, total in enumerate(totals)
    ]
    if any(rest):
        series.append(Series(OTHERS if series else "Cost", tuple(rest)))
    return tuple(series)


def _before(
    question: Question,
    moments: Sequence[str],
    expected: Sequence[str],
    before: Mapping[str, Mapping[str, int]],
) -> Series:
    """Lay the period before over this one, first day on first day; months differ in length."""
    then = dict(zip(expected, _moments(question, question.days.before), strict=False))
    return Series(
        "Period before",
        tuple(
            sum(before.get(then[moment], {}).values()) if moment in then else None
            for moment in moments
        ),
    )


def in_sentence(name: str) -> str:
    """Write a name within a sentence: "Credential owner" → "credential owner", "API key" stays."""
    return name if name[:2].isupper() else name[:1].lower() + name[1:]


def days_of(moment: str) -> tuple[str, str]:
    """Return the first and the last day of an hour, day or month of the chart."""
    day = moment.partition("T")[0]
    if len(day) != len("2026-11"):
        return day, day
    first = date.fromisoformat(f"{day}-01")
    return first.isoformat(), periods.end_of_month(first).isoformat()


def _moments(question: Question, days: Days) -> list[str]:
    """Return the texts of the chart's hours or days, as a report writes them."""
    if question.time == "day":
        return [on.isoformat() for on in days.dates()]
    if question.time == "month":
        return sorted({f"{on:%Y-%m}" for on in days.dates()})
    hours = [
        datetime(on.year, on.month, on.day, hour)  # noqa: DTZ001 - local, as reports write them
        for on in days.dates()
        for hour in range(24)
    ]
    return [f"{hour:%Y-%m-%dT%H:00}" for hour in hours]


def _label(question: Question, moment: str) -> str:
    if question.time == "month":
        return f"{date.fromisoformat(f'{moment}-01'):%b %Y}"
    if question.time == "hour":
        at = datetime.fromisoformat(moment)
        return f"{formats.day(at.date(), with_year=False)} {at:%H:%M}"
    on = datetime.fromisoformat(moment).date()
    return formats.day(on, with_year=False)
