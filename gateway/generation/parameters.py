"""Validation of a request against the catalogue, before any money is reserved.

Messages and codes follow OpenAI's, so that applications written for it understand them.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from gateway.catalog.loading import Catalog
from gateway.catalog.sizes import near_size
from gateway.domain import Caller, ImageRequest, Operation
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.generation.old_sdks import is_older_than_gpt_images
from gateway.image_models import Model, SizeRule
from gateway.image_parameters import (
    PARAMETERS,
    Kind,
    Parameter,
    Value,
    parameters_of,
    sent_fields,
)

FULL_QUALITY = 100
OLD_DEFAULT_MODEL = "dall-e-2"
"""OpenAI's default at the time, for requests that name no model."""
OLD_DEFAULT_SIZES = frozenset({"256x256", "512x512"})
OLD_LARGE_SIZE = "1024x1024"
"""A size that both the old and the current models accept, so it does not tell them apart."""
OLD_QUALITIES = (None, "standard", "auto")
_SIZE_FORM = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)

NO_DEFAULTS: Mapping[str, str] = MappingProxyType({})
OF_EVERY_MODEL = frozenset(one.name for one in PARAMETERS if one.of_every_model)
ENDPOINTS = {
    Operation.GENERATION: "generations",
    Operation.EDIT: "edits",
    Operation.VARIATION: "variations",
}


def parse_image_request(
    body: Mapping[str, object],
    caller: Caller,
    catalog: Catalog,
    *,
    default_model: str,
    defaults: Mapping[str, str] = NO_DEFAULTS,
    operation: Operation = Operation.GENERATION,
    default_response_format: str | None = None,
    user_agent: str = "",
) -> ImageRequest:
    """Validate the fields of a request; input images are checked separately.

    `defaults` has values for open parameters; one that does not suit the model or the other values
    is not used. `user_agent` identifies SDKs of DALL·E's time, whose requests default to DALL·E 2.

    Raises:
        InvalidRequest: a field is missing, unknown, or has a wrong type or value (`param`).
        NotFound, ModelRetired, Forbidden: the model does not exist or may not be used.
    """
    given = {name: value for name, value in body.items() if value is not None}
    name = _text("model", given.get("model", ""))
    name = name or _implied_model(given, operation, default_model, user_agent)
    model = catalog.find(caller, name)
    _refuse_endpoint(model, operation)
    _refuse_unknown(given, model, operation)
    values = _read_all(given, model, operation)
    for name, value in defaults.items():
        _set_default(values, name, value, model, operation)
    _refuse_combinations(values, model)
    values.setdefault("response_format", default_response_format or model.default_response_format)
    if not values.get("stream"):
        values.pop("partial_images", None)
    return ImageRequest(model=model, requested_model=name, operation=operation, **values)


def check_defaults(defaults: Mapping[str, str], model: Model) -> None:
    """Check an operator's defaults by the rules of the default model.

    Raises:
        ConfigurationError: the model does not accept one of them.
    """
    for name, value in defaults.items():
        try:
            check_value(name, value, model)
        except InvalidRequest as error:
            raise ConfigurationError(
                f"GATEWAY_DEFAULT_{name.upper()}: {error.message} The default model is {model.id}."
            ) from None


def check_value(name: str, value: object, model: Model) -> None:
    """Check one parameter of a generation by the rules of a model.

    Raises:
        InvalidRequest: the model has no such parameter, or does not accept the value.
    """
    parameter, read = _READERS[Operation.GENERATION][name]
    if not _has(model, name):
        raise unknown_parameter(name)
    read(parameter, value, model)


def check_request(request: ImageRequest) -> None:
    """Check a request by the rules of its model, for which it was translated.

    Raises:
        InvalidRequest: the model does not accept one of its values.
    """
    model, operation = request.model, request.operation
    values: dict[str, Any] = {
        name: value for name, value in sent_fields(request).items() if name != "model"
    }
    if request.stream:
        values["stream"] = True
    _refuse_endpoint(model, operation)
    _refuse_unknown(values, model, operation)
    _read_all(values, model, operation)
    _refuse_combinations(values, model)


def _set_default(
    values: dict[str, Any], name: str, value: str, model: Model, operation: Operation
) -> None:
    """Fill an open parameter, unless the model or another value does not allow it."""
    reader = _READERS[operation].get(name)  # an edit has fewer
    if name in values or reader is None or not _has(model, name):
        return
    parameter, read = reader
    try:
        filled = {**values, name: read(parameter, value, model)}
        _refuse_combinations(filled, model)
    except InvalidRequest:
        return
    values[name] = filled[name]


def _has(model: Model, name: str) -> bool:
    return name in OF_EVERY_MODEL or name in model.parameters


def unknown_parameter(name: str) -> InvalidRequest:
    """Build the refusal of a parameter that does not exist, or not for this model or operation."""
    return InvalidRequest(f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name)


def _implied_model(
    given: Mapping[str, object], operation: Operation, default_model: str, user_agent: str
) -> str:
    """Return the model for a request that names none: the current default or the old one.

    The old one applies if the size or the SDK dates from DALL·E's time and no parameter is newer.
    """
    size = _text("size", given["size"]) if "size" in given else None
    is_old = (
        given.keys() <= OF_EVERY_MODEL
        and given.get("quality") in OLD_QUALITIES
        and (
            size in OLD_DEFAULT_SIZES
            or (size in {None, OLD_LARGE_SIZE} and is_older_than_gpt_images(user_agent))
        )
    )
    return OLD_DEFAULT_MODEL if is_old or operation is Operation.VARIATION else default_model


def _refuse_endpoint(model: Model, operation: Operation) -> None:
    if ENDPOINTS[operation] not in model.endpoints:
        raise InvalidRequest(
            f"The model '{model.id}' does not serve images/{ENDPOINTS[operation]}. "
            f"It serves: {', '.join(sorted(model.endpoints))}.",
            param="model",
        )


def _refuse_unknown(given: Mapping[str, object], model: Model, operation: Operation) -> None:
    known = _NAMES[operation]
    for name in given:
        if name not in known or not _has(model, name):
            raise unknown_parameter(name)


def _read_all(
    given: Mapping[str, object], model: Model, operation: Operation
) -> dict[str, Any]:  # the arguments of ImageRequest; a test compares their types with the table
    values: dict[str, Any] = {}
    for name, (parameter, read) in _READERS[operation].items():
        if name in given:
            values[name] = read(parameter, given[name], model)
        elif parameter.is_required:
            raise InvalidRequest(
                f"Missing required parameter: '{name}'.",
                code="missing_required_parameter",
                param=name,
            )
    return values


def _refuse_combinations(values: Mapping[str, Any], model: Model) -> None:
    """Refuse values that are valid, but not together."""
    output_format = values.get("output_format")
    if values.get("background") == "transparent" and output_format == "jpeg":
        raise InvalidRequest(
            "Transparent background needs output_format png or webp.", param="background"
        )
    style = values.get("style")
    if style is not None:
        most = model.max_prompt_characters - len(model.styled("", style))
        if len(values["prompt"]) > most:
            raise InvalidRequest(
                f"With this style the prompt can have at most {most} characters, because "
                f"{model.id} gets the style as a sentence of the prompt.",
                code="string_above_max_length",
                param="prompt",
            )
    if values.get("stream") and values.get("n", 1) != 1:
        raise InvalidRequest("Streaming is only supported with n=1.", param="n")
    if values.get("output_compression", FULL_QUALITY) != FULL_QUALITY and (
        output_format not in {"jpeg", "webp"}
    ):
        raise InvalidRequest(
            "output_compression applies to output_format jpeg and webp only.",
            param="output_compression",
        )


# One reader for each kind of parameter


def _prompt(parameter: Parameter, value: object, model: Model) -> str:
    prompt = _text(parameter.name, value)
    if not prompt.strip():
        raise InvalidRequest("The prompt is empty.", param="prompt")
    if len(prompt) > model.max_prompt_characters:
        raise InvalidRequest(
            f"Invalid 'prompt': string too long. Expected a string with maximum length "
            f"{model.max_prompt_characters}, but got a string with length {len(prompt)} instead.",
            code="string_above_max_length",
            param="prompt",
        )
    mark = "" if model.wording is None else model.wording.negative_mark
    if mark and mark in prompt:
        raise InvalidRequest(
            f"The prompt of {model.id} must not contain {mark!r}, after which its server reads "
            "what to avoid. Give that as negative_prompt.",
            param="prompt",
        )
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            "The prompt contains a lone surrogate, which UTF-8 cannot encode. Remove it.",
            param="prompt",
        ) from None
    return prompt


def _short_text(parameter: Parameter, value: object, _model: Model) -> str:
    text = _text(parameter.name, value)
    if parameter.maximum is not None and len(text) > parameter.maximum:
        raise InvalidRequest(
            f"'{parameter.name}' has more than {parameter.maximum} characters.",
            param=parameter.name,
        )
    return text


def _size(parameter: Parameter, value: object, model: Model) -> str:
    size = _text(parameter.name, value)
    rule = model.sizes
    if size == "auto" and rule.auto:
        return size
    if size in rule.fixed:
        return size
    form = _SIZE_FORM.fullmatch(size)
    if form is None or rule.fixed:
        return _listed_size(size, form, model)
    width, height = int(form[1]), int(form[2])
    short, long = sorted((width, height))
    if width % rule.multiple_of or height % rule.multiple_of:
        raise _invalid_size(size, f"Width and height must both be divisible by {rule.multiple_of}.")
    _refuse_edges(size, short, long, rule)
    if long > rule.max_ratio * short:
        raise _invalid_size(size, f"The aspect ratio must not exceed {rule.max_ratio}:1.")
    if width * height < rule.min_pixels:
        raise _invalid_size(size, "Requested resolution is below the current minimum pixel budget.")
    if width * height > rule.max_pixels:
        raise _invalid_size(size, "Requested resolution is above the current maximum pixel budget.")
    return size


def _listed_size(size: str, form: re.Match[str] | None, model: Model) -> str:
    """Accept a size that stands for one of the model's list."""
    rule = model.sizes
    if not rule.fixed:
        raise _invalid_size(size, "Expected 'auto' or WIDTHxHEIGHT, such as 1024x1024.")
    percent = rule.ratio_percent
    wished = None if form is None else (int(form[1]), int(form[2]))
    if wished and percent is not None and near_size(model, wished, ratio_percent=percent):
        return size
    choices = (*rule.fixed, "auto") if rule.auto else rule.fixed
    raise _invalid_size(size, f"Supported sizes are {', '.join(choices)}.{_near(model)}")


def _near(model: Model) -> str:
    """Say which other sizes stand for one of the list, if any do."""
    rule = model.sizes
    if rule.ratio_percent is None:
        return ""
    return (
        " Another size stands for the nearest of them if its ratio differs by at most "
        f"{rule.ratio_percent} % and its pixels by at most a factor of {rule.pixels_factor}."
    )


def _refuse_edges(size: str, short: int, long: int, rule: SizeRule) -> None:
    if short < rule.min_edge:
        raise _invalid_size(
            size, f"The shortest edge must be greater than or equal to {rule.min_edge}."
        )
    if long > rule.max_edge:
        raise _invalid_size(
            size, f"The longest edge must be less than or equal to {rule.max_edge}."
        )


def _invalid_size(size: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid size '{size[:40]}'. {reason}", param="size")


def _choice(parameter: Parameter, value: object, model: Model) -> str:
    choice, choices_of = _text(parameter.name, value), parameter.choices_of
    choices = parameter.choices if choices_of is None else choices_of(model)
    if choice not in choices:
        raise InvalidRequest(
            f"Invalid value: '{choice[:40]}'. Supported values are: "
            f"{', '.join(repr(supported) for supported in choices)}.",
            param=parameter.name,
        )
    return choice


def _integer(parameter: Parameter, value: object, model: Model) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(parameter.name, "an integer", value)
    low, high_of = parameter.minimum, parameter.maximum_of
    high = parameter.maximum if high_of is None else high_of(model)
    if low is not None and value < low:
        raise below_minimum(parameter.name, value, low)
    if high is not None and value > high:
        raise above_maximum(parameter.name, value, high)
    return value


def _number(parameter: Parameter, value: object, _model: Model) -> float:
    # Of the values that JSON has, bool is an int to Python, and NaN is below no bound.
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong_type(parameter.name, "a number", value)
    low, high = parameter.minimum or 0, parameter.maximum or 0
    if not low <= value <= high:
        raise InvalidRequest(
            f"Invalid '{parameter.name}': expected a number from {low} to {high}, but got "
            f"{str(value)[:40]} instead.",
            param=parameter.name,
        )
    return float(value)


def _boolean(parameter: Parameter, value: object, _model: Model) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(parameter.name, "a boolean", value)
    return value


def below_minimum(name: str, value: int, minimum: int) -> InvalidRequest:
    """Build the refusal of an integer that is too small."""
    return InvalidRequest(
        f"Invalid '{name}': integer below minimum value. Expected a value >= {minimum}, but got "
        f"{value} instead.",
        code="integer_below_min_value",
        param=name,
    )


def above_maximum(name: str, value: int, maximum: int) -> InvalidRequest:
    """Build the refusal of an integer that is too large."""
    return InvalidRequest(
        f"Invalid '{name}': integer above maximum value. Expected a value <= {maximum}, but got "
        f"{value} instead.",
        code="integer_above_max_value",
        param=name,
    )


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    raise _wrong_type(name, "a string", value)


def _wrong_type(name: str, expected: str, value: object) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid type for '{name}': expected {expected}, but got {_json_type(value)} instead.",
        code="invalid_type",
        param=name,
    )


def _json_type(value: object) -> str:
    names = {bool: "a boolean", int: "an integer", str: "a string", list: "an array"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "an object")


_READERS_BY_KIND: Mapping[Kind, Callable[[Parameter, object, Model], Value]] = {
    Kind.PROMPT: _prompt,
    Kind.TEXT: _short_text,
    Kind.SIZE: _size,
    Kind.CHOICE: _choice,
    Kind.INTEGER: _integer,
    Kind.NUMBER: _number,
    Kind.BOOLEAN: _boolean,
}
_READERS = {
    operation: {
        parameter.name: (parameter, _READERS_BY_KIND[parameter.kind])
        for parameter in parameters_of(operation)
        if parameter.name != "model"  # it is read first: it decides how the others are read
    }
    for operation in Operation
}
_NAMES = {
    operation: frozenset(parameter.name for parameter in parameters_of(operation))
    for operation in Operation
}
