"""The tables of `docs/models.md`: the catalogue with parameters, prices and lifetimes."""

from collections.abc import Iterator
from pathlib import Path

from gateway.catalog.loading import load_catalog
from gateway.image_models import Model, SeedPrice
from gateway.money import format_usd_short

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
MARKER = "<!-- `make generated` writes everything below from gateway/catalog/catalog.toml. -->\n"
CAPABILITIES = (
    "| model | provider | makes | sizes | qualities | formats | most images | most inputs |\n"
)
LIVES = "| model | released | announced to end | ends | successor |\n|---|---|---|---|---|\n"
PRICES = "| model | text in | image in | text out | image out |\n|---|---|---|---|---|\n"
BY_IMAGE = "| model | size or quality | per image |\n|---|---|---|\n"
MANY_SIZES = 6


def rendered() -> dict[Path, str]:
    """The text that the page should have."""
    by_hand, _, _ = PAGE.read_text().partition(MARKER)
    return {PAGE: f"{by_hand}{MARKER}{''.join(_sections())}"}


def _sections() -> Iterator[str]:
    models = list(load_catalog().models.values())
    yield f"\n## Capabilities\n\n{CAPABILITIES}{'|---' * 8}|\n"
    yield from _rows(_capabilities(model) for model in models if model.id == model.priced_as)
    yield "\n## Lifetimes\n\nDates of the vendors. Dated snapshots are models of their own.\n\n"
    yield LIVES
    yield from _rows(_life(model) for model in models)
    yield "\n## List prices\n\nUS dollars for a million tokens. A snapshot costs the same as its "
    yield f"model.\n\n{PRICES}"
    yield from _rows(
        _tokens(model.id, model.price) for model in models if model.price and _is_own(model)
    )
    yield f"\nBy the image, where a host of the operator's serves the model:\n\n{BY_IMAGE}"
    yield from _rows(
        [f"`{model.id}`", f"`{name}`", format_usd_short(price.per_image_nano)]
        for model in models
        for name, price in model.per_image.items()
    )


def _is_own(model: Model) -> bool:
    return model.id == model.priced_as


def _rows(rows: Iterator[list[str]]) -> Iterator[str]:
    return (f"| {' | '.join(row)} |\n" for row in rows)


def _capabilities(model: Model) -> list[str]:
    return [
        f"`{model.id}`",
        model.provider,
        ", ".join(sorted(model.endpoints)),
        _sizes(model),
        ", ".join(f"`{one}`" for one in model.qualities),
        ", ".join(f"`{one}`" for one in model.output_formats) or "png",
        str(model.max_images),
        str(model.inputs.max_images),
    ]


def _sizes(model: Model) -> str:
    rule = model.sizes
    also = ["`auto`"] if rule.auto else []
    if not rule.fixed:
        return (
            f"edges of a multiple of {rule.multiple_of} up to {rule.max_edge}, "
            f"{rule.min_pixels} to {rule.max_pixels} pixels, ratio up to {rule.max_ratio}:1, `auto`"
        )
    if len(rule.fixed) > MANY_SIZES:
        pixels = [int(width) * int(height) for width, height in (s.split("x") for s in rule.fixed)]
        return f"{len(rule.fixed)} sizes of {min(pixels)} to {max(pixels)} pixels, `auto`"
    return ", ".join([*(f"`{size}`" for size in rule.fixed), *also])


def _life(model: Model) -> list[str]:
    dates = (model.released, model.deprecation_date, model.shutdown_date)
    successor = f"`{model.successor}`" if model.successor else ""
    return [f"`{model.id}`", *(str(day or "") for day in dates), successor]


def _tokens(name: str, price: SeedPrice) -> list[str]:
    amounts = (
        *(price.text_input_nano, price.image_input_nano),
        *(price.text_output_nano, price.image_output_nano),
    )
    return [f"`{name}`", *map(format_usd_short, amounts)]
