"""Fields, options and links that operators' costs and a tenant's usage share.

Each amount of a report leads to the calls behind it, by the address of a list of calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, TypedDict, TypeVar
from urllib.parse import urlencode
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict

from gateway.billing.call_list import NULLABLE, CallFilter, ListedPurchase
from gateway.billing.usage_queries import UsageFilters
from gateway.console import periods
from gateway.console.cost_explorer import NONE, UNITS, ExplorerRow, Grouping, Question, TimeUnit
from gateway.console.periods import Days
from gateway.db.pages import Page
from gateway.domain import Operation
from gateway.errors import InvalidRequest
from gateway.image_models import Model

Form = TypeVar("Form", bound="ReportForm")
Options = dict[str, list[tuple[str, str]]]
"""The options of each select: their values and texts."""
FIELDS: Mapping[Grouping, str] = {
    "model": "model",
    "tenant": "tenant",
    "user": "user",
    "key": "key",
    "provider": "provider",
    "operation": "operation",
    "credential_owner": "owner",
    "requested_model": "requested_model",
}
"""The field of the form that chooses one group of a grouping."""
CALL_FIELDS: Mapping[Grouping, str] = {
    **FIELDS,
    "size": "size",
    "quality": "quality",
    "status": "status",
}
"""The field that chooses one group in the list of calls."""
STATUSES = (
    ("charged", "Charged"),
    ("estimated", "Estimated"),
    ("failed", "Failed"),
    ("in_progress", "Under way"),
    ("unknown", "Outcome unknown"),
)
TOTALLED = ("failed", "estimated", "open")
"""Statuses whose totals are shown apart."""
STATUS_CHOICES = (
    ("", "Any status"),
    *STATUSES,
    ("open", "Open: money still held"),
)


class ReportForm(BaseModel):
    """The fields of both forms, all in the address. An empty field is none."""

    model_config = ConfigDict(extra="forbid", str_max_length=255, str_strip_whitespace=True)
    path: ClassVar[str]
    calls_path: ClassVar[str]
    narrower: ClassVar[Mapping[Grouping, Grouping]]
    """The grouping of one group alone; of others, by model."""

    period: str = periods.USUAL
    start: str = ""
    end: str = ""
    by: str = "day"
    group: str = "model"
    key: str = ""
    user: str = ""
    model: str = ""
    requested_model: str = ""
    provider: str = ""
    operation: str = ""
    owner: str = ""
    mode: str = ""
    compare: str = "yes"
    format: str = ""

    def address(self, path: str = "", **changes: str) -> str:
        """Write the address of this form with some fields changed; usual values are left out."""
        usual = type(self)()
        fields = self.model_dump() | {"format": ""} | changes
        asked = {
            name: value
            for name, value in fields.items()
            if value and value != getattr(usual, name, "")
        }
        return f"{path or self.path}?{urlencode(asked)}" if asked else path or self.path

    def days(self, zone: str, *, is_of_each: bool = False, longest: int = periods.MAX_DAYS) -> Days:
        """Read the period; `is_of_each`: in each tenant's own days, of which today is UTC's.

        Raises:
            InvalidRequest: a date is not one, the end is before the start, or it is too long.
        """
        today = datetime.now(UTC if is_of_each else ZoneInfo(zone)).date()
        return periods.parse_days(self.period, self.start, self.end, today, zone, longest=longest)

    def calls_address(self, days: Days, **changes: str) -> str:
        """Write the address of the calls behind an amount of the report."""
        asked = {name: getattr(self, name, "") for name in (*FIELDS.values(), "mode")}
        asked |= {"start": days.first.isoformat(), "end": days.last.isoformat()} | changes
        found = {name: value for name, value in asked.items() if value}
        return f"{self.calls_path}?{urlencode(found)}"

    def period_links(self) -> list[tuple[str, str, bool]]:
        """Link the periods that are offered: text, address, and whether it is shown now."""
        has_days = bool(self.start or self.end)
        return [
            (
                text,
                self.address(period=name, start="", end=""),
                not has_days and self.period == name,
            )
            for name, text in periods.CHOICES.items()
        ]


class ShownCalls(TypedDict):
    """The parts of the page of a list of calls that are the same for operators and tenants."""

    title: str
    lead: str
    form: "CallsFields"
    found: Sequence[ListedPurchase]
    newest: str
    older: str
    chosen: list[tuple[str, str, str]]
    statuses: Sequence[tuple[str, str]]
    status_names: Mapping[str, str]


class CallsFields(BaseModel):
    """The further fields of a list of calls, all in the address.

    Key, user, size and quality may be `(none)`: the calls without one.
    """

    model_config = ConfigDict(extra="forbid", str_max_length=255, str_strip_whitespace=True)
    calls_path: ClassVar[str]

    size: str = ""
    quality: str = ""
    status: str = ""
    after: UUID | None = None

    def own_address(self, **changes: str) -> str:
        """Write the address of this list with some fields changed."""
        fields = self.model_dump(exclude={"format", "by", "group", "compare"}) | changes
        found = {name: value for name, value in fields.items() if value}
        return f"{self.calls_path}?{urlencode(found)}"

    def kept_fields(self) -> list[str]:
        """Name the fields of the address that the list's own form does not ask for."""
        own = {"format", "by", "group", "compare", "start", "end", "status", "after"}
        return [name for name, value in self.model_dump(exclude=own).items() if value]

    def report(self, form: type[Form]) -> Form:
        """Build the form of the report with this list's fields, but for those that calls lack."""
        fields = self.model_dump(include=set(form.model_fields))
        return form(
            **{
                name: value
                for name, value in fields.items()
                if value != NONE or name not in NULLABLE
            }
        )

    def call_filter(self, filters: UsageFilters) -> CallFilter:
        """Build the filter of calls from a report's filters and the further fields."""
        fields = self.model_dump()
        return CallFilter(
            api_key_id=filters.key_id,
            user_id=filters.user_id,
            model=filters.model,
            requested_model=fields["requested_model"] or None,
            provider=filters.provider,
            operation=filters.operation,
            credential=filters.credential_owner,
            size=_value(self.size),
            quality=_value(self.quality),
            status=self.status or None,
            without=frozenset(name for name in NULLABLE if fields[name] == NONE),
        )

    def _chosen(self) -> list[tuple[str, str, str]]:
        """Name each filter in force: its field, its value, and the list without it."""
        fields = self.model_dump()
        return [
            (name.replace("_", " "), fields[name], self.own_address(**{name: "", "after": ""}))
            for name in CALL_FIELDS.values()
            if name != "status" and fields.get(name)
        ]

    def context(self, found: Page[ListedPurchase], days: Days, whose: str) -> ShownCalls:
        """Build what the page of a list shows of these days; `whose`: the time zone in words."""
        last = found.items[-1].id if found.has_more else None
        return ShownCalls(
            title="Calls",
            lead=f"Each call of {days.text} with its exact cost, as the ledger has it. Days are "
            f"those of {whose}.",
            form=self,
            found=found.items,
            newest=self.own_address(after="") if self.after else "",
            older="" if last is None else self.own_address(after=str(last)),
            chosen=self._chosen(),
            statuses=STATUS_CHOICES,
            status_names=dict(STATUSES),
        )


def _value(text: str) -> str | None:
    return text if text and text != NONE else None


@dataclass(frozen=True, slots=True)
class ReportLine:
    """A row of a report, with the addresses of its group alone and of the calls of each amount."""

    row: ExplorerRow
    only: str
    calls: str
    before: str
    failed: str
    estimated: str
    open: str


def report_line(form: ReportForm, question: Question, row: ExplorerRow) -> ReportLine:
    """Build the links of a row."""
    field = FIELDS.get(question.group)
    only = ""
    if row.id and field is not None:
        only = form.address(**{field: row.id}, group=form.narrower.get(question.group, "model"))
    chosen = {CALL_FIELDS[question.group]: row.id or NONE}
    zone = {"zone": question.zone_of_calls}

    def calls(status: str = "", days: Days = question.counted) -> str:
        return form.calls_address(days, **{"status": status} | zone | chosen)

    return ReportLine(
        row,
        only,
        calls=calls(),
        before=calls(days=question.days.before),
        failed=calls("failed"),
        estimated=calls("estimated"),
        open=calls("open"),
    )


def total_links(form: ReportForm, question: Question) -> dict[str, str]:
    """Build the addresses of the calls behind the totals of a report."""
    days, zone = question.counted, question.zone_of_calls
    return {
        "calls": form.calls_address(days, zone=zone),
        "before": form.calls_address(question.days.before, zone=zone),
        **{status: form.calls_address(days, zone=zone, status=status) for status in TOTALLED},
    }


def parse_unit(text: str) -> TimeUnit:
    """Read the unit of time of the chart.

    Raises:
        InvalidRequest: it is none.
    """
    for unit in UNITS:
        if unit == text:
            return unit
    raise InvalidRequest(f"by must be one of {', '.join(UNITS)}.", param="by")


def parse_grouping(text: str, allowed: Sequence[Grouping]) -> Grouping:
    """Read the grouping.

    Raises:
        InvalidRequest: it is none of those allowed.
    """
    for grouping in allowed:
        if grouping == text:
            return grouping
    raise InvalidRequest(f"group must be one of {', '.join(allowed)}.", param="group")


def usual_options(models: Mapping[str, Model], owners: Sequence[tuple[str, str]]) -> Options:
    """Build the options that are the same in both forms."""
    names = [(name, name) for name in sorted(models)]
    providers = sorted({model.provider for model in models.values()})
    return {
        "model": [("", "All models"), *names],
        "requested_model": [("", "Any"), *names],
        "provider": [("", "All providers"), *((name, name) for name in providers)],
        "operation": [("", "All operations"), *((one.value, one.value) for one in Operation)],
        "owner": [("", "Any credential"), *owners],
        "compare": [("yes", "Period before"), ("no", "Nothing")],
    }


def with_own(options: Options, form: ReportForm) -> Options:
    """Offer what the address names too, where it is none of the options."""
    for name, offered in options.items():
        value = getattr(form, name)
        if value not in {one for one, _ in offered}:
            offered.append((value, value))
    return options
