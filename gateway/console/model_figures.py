"""Figures of models that the operator's overview and a tenant's home share."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta

from gateway.catalog.loading import Catalog
from gateway.console import formats
from gateway.console.charts import USD, Chart, ChartData, Series, stacked_bars
from gateway.image_models import Model

ENDING_DAYS = 60
MAX_DRAWN = 7
"""Models with a colour of their own; the rest is drawn as one."""


def ending_models(catalog: Catalog, today: date) -> dict[str, Model]:
    """Return the models that their vendors shut down within 60 days, by their ids."""
    last = today + timedelta(days=ENDING_DAYS)
    return {
        model.id: model
        for model in catalog.models.values()
        if model.shutdown_date is not None and today < model.shutdown_date <= last
    }


def draw_days(
    by_model: Mapping[str, Mapping[date, int]],
    days: Sequence[date],
    *,
    key: str,
    title: str,
    description: str,
    link: Callable[[date], str],
) -> Chart:
    """Draw the costs of each model by day, the dearest models first. Costs in nano-USD."""
    sums = {model: [costs.get(day, 0) for day in days] for model, costs in by_model.items()}
    order = sorted((name for name in sums if any(sums[name])), key=lambda name: -sum(sums[name]))
    series = [Series(name, tuple(sums[name])) for name in order[:MAX_DRAWN]]
    if len(order) > MAX_DRAWN:
        rest = zip(*(sums[name] for name in order[MAX_DRAWN:]), strict=True)
        series.append(Series("Others", tuple(sum(values) for values in rest)))
    return stacked_bars(
        ChartData(
            key=key,
            title=title,
            description=description,
            labels=tuple(formats.day(day, with_year=False) for day in days),
            series=tuple(series),
            unit=USD,
            links=tuple(link(day) for day in days),
        )
    )
