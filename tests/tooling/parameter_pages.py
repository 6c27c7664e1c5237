"""The table of request parameters in `docs/api.md`, from their declarations and the catalogue."""

from collections.abc import Iterator
from pathlib import Path

from gateway.catalog.loading import load_catalog
from gateway.domain import Operation
from gateway.generation.parameters import ENDPOINTS
from gateway.image_parameters import PARAMETERS, Kind, Parameter

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
BEGIN = "<!-- `make generated` writes this table from image_parameters.py and catalog.toml. -->\n"
END = "<!-- The generated table ends here. -->\n"
HEAD = "| parameter | values | of | models | MCP | |\n|---|---|---|---|---|---|\n"


def rendered() -> dict[Path, str]:
    """The text that the page should have."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return {PAGE: f"{before}{BEGIN}\n{table()}\n{END}{after}"}


def table() -> str:
    """One line for each declaration."""
    return HEAD + "".join(f"| {' | '.join(_cells(parameter))} |\n" for parameter in PARAMETERS)


def _cells(parameter: Parameter) -> Iterator[str]:
    yield f"`{parameter.name}`"
    yield values_of(parameter)
    yield ", ".join(ENDPOINTS[one] for one in Operation if one in parameter.operations)
    yield models_of(parameter)
    yield "yes" if parameter.argument is not None else ""
    yield parameter.description


def values_of(parameter: Parameter) -> str:
    """The values that some model accepts, in words."""
    if parameter.choices:
        return ", ".join(f"`{choice}`" for choice in parameter.choices)
    if parameter.kind is Kind.BOOLEAN:
        return "`true`, `false`"
    least, most = parameter.minimum, parameter.maximum
    if parameter.kind in {Kind.INTEGER, Kind.NUMBER}:
        return _bounds(least, most) or "integer"
    bounds = _bounds(least, most)
    return f"{bounds} characters" if bounds else "text"


def _bounds(least: int | None, most: int | None) -> str:
    if least is not None and most is not None:
        return f"{least} to {most}"
    if least is not None:
        return f"at least {least}"
    return "" if most is None else f"at most {most}"


def models_of(parameter: Parameter) -> str:
    """The models that accept a parameter, or those that do not, whichever are fewer."""
    if parameter.of_every_model:
        return "all"
    models = [
        model
        for name, model in load_catalog().models.items()
        if name == model.priced_as  # a snapshot accepts what its model accepts
    ]
    accepting = [model.id for model in models if parameter.name in model.parameters]
    others = [model.id for model in models if parameter.name not in model.parameters]
    if not accepting:
        return "those of a [models file](models-file.md)"
    if len(accepting) <= len(others):
        return ", ".join(accepting)
    return f"all but {', '.join(others)}"
