"""The table of parameters, the request that mirrors it, and the catalogue agree."""

import typing
from collections import Counter
from dataclasses import fields, replace

import pytest

from gateway.catalog.loading import load_catalog
from gateway.domain import ImageRequest, Operation
from gateway.generation.parameters import ENDPOINTS
from gateway.image_models import Model
from gateway.image_parameters import PARAMETERS, Kind, Parameter, parameters_of, sent_fields
from tests.models_files import host_model
from tests.parameter_helpers import values_of

MODELS = {**load_catalog().models, "diffuser": host_model("diffuser", "kserve")}
NOT_PARAMETERS = {
    *("requested_model", "operation", "inputs", "mask", "markup", "idempotency", "link_only"),
}
"""Fields of a request that no client's parameter of the same name fills."""
TYPES: dict[Kind, type] = {Kind.INTEGER: int, Kind.NUMBER: float, Kind.BOOLEAN: bool}
NAMES = sorted({parameter.name for parameter in PARAMETERS})


def test_a_request_has_a_typed_field_for_each_parameter_and_no_other() -> None:
    annotations = typing.get_type_hints(ImageRequest)
    found = {
        field.name: annotations[field.name]
        for field in fields(ImageRequest)
        if field.name not in NOT_PARAMETERS
    }
    expected = {one.name: TYPES.get(one.kind, str) for one in PARAMETERS} | {"model": Model}
    plain = {name: set(typing.get_args(kind)) - {type(None)} for name, kind in found.items()}
    assert {name: kinds or {found[name]} for name, kinds in plain.items()} == {
        name: {kind} for name, kind in expected.items()
    }


@pytest.mark.parametrize("operation", Operation)
def test_a_provider_gets_each_value_by_the_parameters_own_name(operation: Operation) -> None:
    model = MODELS["gpt-image-2.6-flare"]
    shown = {
        one.name: next(iter(values_of(one, model)), "x")
        for one in parameters_of(operation)
        if one.is_of_image
    }
    given = {name: value for name, value in shown.items() if name != "model"}
    request = replace(
        ImageRequest(model, "alias", operation=operation), **typing.cast("typing.Any", given)
    )
    assert sent_fields(request) == shown


def test_an_open_option_is_not_sent() -> None:
    request = ImageRequest(MODELS["gpt-image-2"], "gpt-image-2", "x")
    assert sent_fields(request) == {"model": "gpt-image-2", "prompt": "x", "n": 1}


def test_a_name_is_declared_once_for_an_operation() -> None:
    declared = Counter((one.name, operation) for one in PARAMETERS for operation in one.operations)
    assert {pair: count for pair, count in declared.items() if count > 1} == {}


def test_the_catalogue_lists_declared_parameters_that_not_every_model_accepts() -> None:
    by_model = {one.name for one in PARAMETERS if not one.of_every_model}
    listed = frozenset[str]().union(*(model.parameters for model in MODELS.values()))
    assert listed == by_model


def serving(parameter: Parameter) -> list[Model]:
    """The models that accept a parameter in one of its operations."""
    endpoints = {ENDPOINTS[operation] for operation in parameter.operations}
    return [
        model
        for model in MODELS.values()
        if endpoints & model.endpoints
        and (parameter.of_every_model or parameter.name in model.parameters)
    ]


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda one: one.name)
def test_the_documented_values_are_those_of_all_models_together(parameter: Parameter) -> None:
    models = serving(parameter)
    assert models
    if parameter.choices_of is not None:
        found = {choice for model in models for choice in parameter.choices_of(model)}
        assert found == set(parameter.choices)
    if parameter.maximum_of is not None:
        assert max(map(parameter.maximum_of, models)) == parameter.maximum
    if parameter.kind is Kind.SIZE and parameter.choices:
        assert {model.sizes.fixed for model in models} == {parameter.choices}
    if parameter.argument is not None:
        assert set(parameter.argument.choices) <= set(parameter.choices)
