"""Requests that use every parameter, drawn from the table of parameters."""

from collections.abc import Iterator
from typing import Any

from gateway.catalog.loading import load_catalog
from gateway.domain import Operation
from gateway.image_models import Model
from gateway.image_parameters import PARAMETERS, Kind, Parameter, parameters_of

CATALOG = load_catalog()
SIZES = ("1024x1024", "1536x1024", "1024x1536", "auto")
BESIDE: dict[str, dict[str, Any]] = {"output_compression": {"output_format": "webp"}}
"""The other parameters that a parameter requires, in any request."""


def requests_with_every_value(model: Model, operation: Operation) -> list[dict[str, Any]]:
    """Every value of every parameter that a model accepts and its provider gets, one in each.

    Without the prompt; of size and quality the cheapest, where they are not the one.
    """
    base = {"model": model.id, "size": "1024x1024", "quality": "low"}
    return [
        base | BESIDE.get(parameter.name, {}) | {parameter.name: value}
        for parameter in parameters_of(operation)
        if parameter.is_of_image and parameter.name != "prompt"
        if parameter.of_every_model or parameter.name in model.parameters
        for value in values_of(parameter, model)
    ]


OF_HOSTS = frozenset(
    one.name
    for one in PARAMETERS
    if not one.of_every_model
    and not any(one.name in model.parameters for model in CATALOG.models.values())
)
"""The parameters that only models of a models file take; test_kserve.py buys with them."""


def model_for(name: str) -> dict[str, str]:
    """A model beside a parameter that not every model accepts; nothing beside another argument."""
    if all(one.of_every_model for one in PARAMETERS if one.name == name):
        return {}
    accepting = (one for one in CATALOG.models.values() if name in one.parameters)
    # Of the current generation: the other arguments are its.
    return {"model": next(one.id for one in accepting if "low" in one.qualities)}


def values_of(parameter: Parameter, model: Model) -> Iterator[str | int | float | bool]:
    """Every choice, or the bounds."""
    match parameter.kind:
        case Kind.CHOICE:
            yield from parameter.choices_of(model) if parameter.choices_of else parameter.choices
        case Kind.INTEGER:
            highest = parameter.maximum_of(model) if parameter.maximum_of else parameter.maximum
            yield from {parameter.minimum or 0, 2 if highest is None else highest}
        case Kind.NUMBER:
            yield from (float(parameter.minimum or 0), 7.5)
        case Kind.SIZE:
            yield from model.sizes.fixed or SIZES
        case Kind.BOOLEAN:
            yield from (True, False)
        case Kind.TEXT if parameter.name == "model":
            yield model.id
        case Kind.TEXT | Kind.PROMPT:
            yield "x" * (parameter.maximum or 1)
