"""The table of `docs/metrics.md`, from the metrics themselves."""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from gateway import telemetry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
MARKER = "<!-- `make generated` writes everything below from gateway/telemetry.py. -->\n"
HEAD = "| metric | labels | type | meaning |\n|---|---|---|---|\n"
COMBINED = {
    "livesum": "gauge, the sum of all workers",
    "livemin": "gauge, the smallest of all workers",
    "livemax": "gauge, the largest of all workers",
    "mostrecent": "gauge, the newest of all workers",
}


def rendered() -> dict[Path, str]:
    """The text that the page should have."""
    by_hand, _, _ = PAGE.read_text().partition(MARKER)
    return {PAGE: f"{by_hand}{MARKER}\n{table()}"}


def table() -> str:
    """One line for each metric, in the order of their declarations."""
    return HEAD + "".join(f"| {' | '.join(_cells(metric))} |\n" for metric in metrics())


def metrics() -> list[MetricWrapperBase]:
    """Every metric of the gateway."""
    return [one for one in vars(telemetry).values() if isinstance(one, MetricWrapperBase)]


def name_of(metric: MetricWrapperBase) -> str:
    """The name in Prometheus, of histograms without the suffixes of their series."""
    name = next(iter(metric.describe())).name
    return f"{name}_total" if isinstance(metric, Counter) else name


def labels_of(metric: MetricWrapperBase) -> tuple[str, ...]:
    """The names of its labels."""
    return tuple(metric._labelnames)  # noqa: SLF001 - the library tells them nowhere else


def _cells(metric: MetricWrapperBase) -> Iterator[str]:
    yield f"`{name_of(metric)}`"
    yield ", ".join(f"`{label}`" for label in labels_of(metric))
    yield _kind(metric)
    yield next(iter(metric.describe())).documentation


def _kind(metric: MetricWrapperBase) -> str:
    match metric:
        case Gauge():
            return COMBINED[metric._multiprocess_mode]  # noqa: SLF001 - the same
        case Histogram():
            return "histogram"
        case _:
            return "counter"
