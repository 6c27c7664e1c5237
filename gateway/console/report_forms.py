"""The fields and options that the operators' form of costs and a tenant's form of usage share."""

from collections.abc import Mapping, Sequence
from typing import ClassVar
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict

from gateway.console import periods
from gateway.console.cost_explorer import UNITS, Grouping, TimeUnit
from gateway.domain import Operation
from gateway.errors import InvalidRequest
from gateway.image_models import Model

Options = dict[str, list[tuple[str, str]]]
"""The options of each select: their values and texts."""


class ReportForm(BaseModel):
    """The fields of both forms, all in the address. An empty field is none."""

    model_config = ConfigDict(extra="forbid", str_max_length=255, str_strip_whitespace=True)
    path: ClassVar[str]

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
