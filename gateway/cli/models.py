"""Commands for models: the catalogue with the operator's own, and the check of a models file."""

from pathlib import Path
from typing import Annotated

import typer

from gateway.billing.prices import list_prices_of
from gateway.catalog.loading import Catalog
from gateway.catalog.opening import open_catalog
from gateway.cli.output import JsonOption, console, guarded, print_json, refuse, show
from gateway.config import load_settings
from gateway.image_models import Model, SeedPrice, Unit
from gateway.money import format_usd_short

models = typer.Typer(help="Models: list them, check a models file.", no_args_is_help=True)


@models.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """List every model with its provider, list price and fallbacks."""
    catalog = guarded(lambda: open_catalog(load_settings()))
    rows = [_row(catalog, model) for model in catalog.models.values()]
    if as_json:
        print_json(rows)
        return
    show(
        [{**row, "fallbacks": _joined(row["fallbacks"])} for row in rows],
        as_json=False,
    )


@models.command("check")
def check_file(
    file: Annotated[
        Path | None, typer.Argument(help="A models file. Default: GATEWAY_MODELS_FILE.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a models file; nothing is started, and no host is asked."""
    settings = guarded(load_settings)
    if file is not None:
        settings = settings.model_copy(update={"models_file": file})
    if settings.models_file is None and settings.kserve_endpoint is None:
        refuse("Name a models file, or set GATEWAY_MODELS_FILE.")
    found = guarded(lambda: open_catalog(settings)).declaration
    counts = {
        "providers": len(found.hosts),
        "models": len(found.models),
        "fallbacks": len(found.fallbacks),
        "prices": len(found.prices) - len(found.models),
    }
    if as_json:
        print_json({"file": settings.models_file, **counts})
        return
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    console.print(f"{settings.models_file or 'KSERVE_ENDPOINT'} is valid: {said}.")


def _row(catalog: Catalog, model: Model) -> dict[str, object]:
    shutdown = model.shutdown_date
    return {
        "model": model.id,
        "provider": model.provider,
        "endpoints": ", ".join(sorted(model.endpoints)),
        "price": _price(catalog, model),
        "fallbacks": [fallback.id for fallback in catalog.fallbacks(model.id)],
        "shutdown_date": None if shutdown is None else shutdown.isoformat(),
    }


def _joined(names: object) -> str:
    return ", ".join(names) if isinstance(names, list) else ""


def _price(catalog: Catalog, model: Model) -> str:
    """Word the list price; the price in force is shown by `gateway prices list`."""
    listed = list_prices_of([catalog.models[model.priced_as]])
    prices = sorted(listed.values(), key=lambda price: price.per_image_nano)
    if not prices:
        return ""
    words = [_amount(model.unit, price) for price in (prices[0], prices[-1])]
    return words[0] if words[0] == words[-1] else f"{words[0]} to {words[-1]}"


def _amount(unit: Unit, price: SeedPrice) -> str:
    if unit is Unit.IMAGE:
        return f"{format_usd_short(price.per_image_nano)} an image"
    if unit is Unit.SECOND:
        return f"{format_usd_short(price.per_second_nano)} a second"
    return f"{format_usd_short(price.image_output_nano)} a million image tokens"
