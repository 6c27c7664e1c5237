"""The parts of Grafana's dashboards, and the usual queries of their panels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

RATE = "[$__rate_interval]"
HERE = '{instance=~"$instance"}'
FAILED = 'status=~"5.."'
GENERATIONS = 'route=~"/v1/images/(generations|edits|variations)|/mcp.*"'
INSTANCE = {"instance": "label_values(gateway_build_info, instance)"}
USD = "/ 1e9"


@dataclass(frozen=True)
class Panel:
    """One panel. `queries`: by legend. `limit`: from this value on it is red."""

    title: str
    unit: str
    description: str
    queries: Mapping[str, str]
    kind: Literal["timeseries", "stat", "bargauge"] = "timeseries"
    limit: float | None = None


@dataclass(frozen=True)
class Row:
    """Panels beside each other."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """A dashboard. `variables`: the query of each choice at its top."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: Mapping[str, str] = field(default_factory=dict)


def quantile(share: float, metric: str, by: str = "", where: str = "") -> str:
    """The query of a quantile of a histogram, by labels."""
    labels = ", ".join(filter(None, ("le", by)))
    chosen = ", ".join(filter(None, ('instance=~"$instance"', where)))
    return (
        f"histogram_quantile({share}, "
        f"sum by ({labels}) (rate(gateway_{metric}_bucket{{{chosen}}}{RATE})))"
    )


def rate(metric: str, by: str = "", where: str = "") -> str:
    """The query of a counter's rate, by labels."""
    chosen = ", ".join(filter(None, ('instance=~"$instance"', where)))
    return f"sum{f' by ({by})' if by else ''} (rate(gateway_{metric}{{{chosen}}}{RATE}))"
