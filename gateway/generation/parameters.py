"""Validation of a request against the catalogue, before any money is reserved.

Messages and codes follow OpenAI's, so that applications written for it understand them.
"""

import re
from collections.abc import Mapping

from gateway.catalog.loading import Catalog
from gateway.domain import Caller, ImageRequest, Operation
from gateway.errors import InvalidRequest
from gateway.generation.old_sdks import is_older_than_gpt_images
from gateway.image_models import Model

MAX_IDENTIFIER_CHARACTERS = 512
MAX_PARTIAL_IMAGES = 3
FULL_QUALITY = 100
OLD_DEFAULT_MODEL = "dall-e-2"
"""OpenAI's default at the time, for requests that name no model."""
OLD_DEFAULT_SIZES = frozenset({"256x256", "512x512"})
OLD_LARGE_SIZE = "1024x1024"
"""A size that both the old and the current models accept, so it does not tell them apart."""
OLD_QUALITIES = (None, "standard", "auto")
_SIZE_FORM = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)

VARIATION_PARAMETERS = frozenset({"model", "n", "size", "response_format", "user"})
COMMON_PARAMETERS = VARIATION_PARAMETERS | {"prompt", "quality"}
GENERATION_ONLY = frozenset({"moderation", "style"})
EDIT_ONLY = frozenset({"input_fidelity"})
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
    operation: Operation = Operation.GENERATION,
    default_response_format: str | None = None,
    user_agent: str = "",
) -> ImageRequest:
    """Validate the fields of a request; input images are checked separately.

    `user_agent` identifies SDKs of DALL·E's time, whose requests default to DALL·E 2.

    Raises:
        InvalidRequest: a field is missing, unknown, or has a wrong type or value (`param`).
        NotFound, ModelRetired, Forbidden: the model does not exist or may not be used.
    """
    given = {name: value for name, value in body.items() if value is not None}
    name = _text(given, "model") or _implied_model(given, operation, default_model, user_agent)
    model = catalog.find(caller, name)
    _refuse_endpoint(model, operation)
    _refuse_unknown(given, model, operation)
    output_format = _choice(given, "output_format", model.output_formats)
    background = _choice(given, "background", model.backgrounds)
    if background == "transparent" and output_format == "jpeg":
        raise InvalidRequest(
            "Transparent background needs output_format png or webp.", param="background"
        )
    n = _integer(given, "n", 1, model.max_images) or 1
    stream, partial_images = _streaming(given, n)
    return ImageRequest(
        model=model,
        requested_model=name,
        prompt="" if operation is Operation.VARIATION else _prompt(given, model),
        operation=operation,
        n=n,
        size=_size(given, model),
        quality=_choice(given, "quality", model.qualities),
        background=background,
        output_format=output_format,
        output_compression=_compression(given, output_format),
        moderation=_choice(given, "moderation", ("auto", "low")),
        complexity=_choice(given, "complexity", model.complexities),
        input_fidelity=_choice(given, "input_fidelity", model.inputs.fidelities),
        style=_choice(given, "style", ("vivid", "natural")),
        safety_identifier=_identifier(given, "safety_identifier"),
        user=_identifier(given, "user"),
        response_format=_choice(given, "response_format", ("url", "b64_json"))
        or default_response_format
        or model.default_response_format,
        stream=stream,
        partial_images=partial_images,
    )


def _implied_model(
    given: Mapping[str, object], operation: Operation, default_model: str, user_agent: str
) -> str:
    """Return the model for a request that names none: the current default or the old one.

    The old one applies if the size or the SDK dates from DALL·E's time and no parameter is newer.
    """
    size = _text(given, "size")
    is_old = (
        given.keys() <= COMMON_PARAMETERS
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
    if operation is Operation.VARIATION:
        known = VARIATION_PARAMETERS
    else:
        known = COMMON_PARAMETERS | model.parameters
        known -= GENERATION_ONLY if operation is Operation.EDIT else EDIT_ONLY
    for name in given:
        if name not in known:
            raise InvalidRequest(
                f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name
            )


def _streaming(given: Mapping[str, object], n: int) -> tuple[bool, int]:
    stream = given.get("stream", False)
    if not isinstance(stream, bool):
        raise _wrong_type("stream", "a boolean", stream)
    partial_images = _integer(given, "partial_images", 0, MAX_PARTIAL_IMAGES) or 0
    if stream and n > 1:
        raise InvalidRequest("Streaming is only supported with n=1.", param="n")
    return stream, partial_images if stream else 0


def _prompt(given: Mapping[str, object], model: Model) -> str:
    prompt = _text(given, "prompt")
    if prompt is None:
        raise InvalidRequest(
            "Missing required parameter: 'prompt'.",
            code="missing_required_parameter",
            param="prompt",
        )
    if not prompt.strip():
        raise InvalidRequest("The prompt is empty.", param="prompt")
    if len(prompt) > model.max_prompt_characters:
        raise InvalidRequest(
            f"Invalid 'prompt': string too long. Expected a string with maximum length "
            f"{model.max_prompt_characters}, but got a string with length {len(prompt)} instead.",
            code="string_above_max_length",
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


def _size(given: Mapping[str, object], model: Model) -> str | None:
    size = _text(given, "size")
    rule = model.sizes
    if size is None or (size == "auto" and rule.auto):
        return size
    if rule.fixed:
        if size not in rule.fixed:
            choices = (*rule.fixed, "auto") if rule.auto else rule.fixed
            raise _invalid_size(size, f"Supported sizes are {', '.join(choices)}.")
        return size
    form = _SIZE_FORM.fullmatch(size)
    if form is None:
        raise _invalid_size(size, "Expected 'auto' or WIDTHxHEIGHT, such as 1024x1024.")
    width, height = int(form[1]), int(form[2])
    short, long = sorted((width, height))
    if width % rule.multiple_of or height % rule.multiple_of:
        raise _invalid_size(size, f"Width and height must both be divisible by {rule.multiple_of}.")
    if long > rule.max_edge:
        raise _invalid_size(
            size, f"The longest edge must be less than or equal to {rule.max_edge}."
        )
    if long > rule.max_ratio * short:
        raise _invalid_size(size, f"The aspect ratio must not exceed {rule.max_ratio}:1.")
    if width * height < rule.min_pixels:
        raise _invalid_size(size, "Requested resolution is below the current minimum pixel budget.")
    if width * height > rule.max_pixels:
        raise _invalid_size(size, "Requested resolution is above the current maximum pixel budget.")
    return size


def _invalid_size(size: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid size '{size[:40]}'. {reason}", param="size")


def _compression(given: Mapping[str, object], output_format: str | None) -> int | None:
    compression = _integer(given, "output_compression", 0, FULL_QUALITY)
    if (
        compression is not None
        and compression != FULL_QUALITY
        and output_format not in {"jpeg", "webp"}
    ):
        raise InvalidRequest(
            "output_compression applies to output_format jpeg and webp only.",
            param="output_compression",
        )
    return compression


def _choice(given: Mapping[str, object], name: str, allowed: tuple[str, ...]) -> str | None:
    value = _text(given, name)
    if value is not None and value not in allowed:
        raise InvalidRequest(
            f"Invalid value: '{value[:40]}'. Supported values are: "
            f"{', '.join(repr(choice) for choice in allowed)}.",
            param=name,
        )
    return value


def _identifier(given: Mapping[str, object], name: str) -> str | None:
    value = _text(given, name)
    if value is not None and len(value) > MAX_IDENTIFIER_CHARACTERS:
        raise InvalidRequest(
            f"'{name}' has more than {MAX_IDENTIFIER_CHARACTERS} characters.", param=name
        )
    return value


def _integer(given: Mapping[str, object], name: str, low: int, high: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(name, "an integer", value)
    if not low <= value <= high:
        below = value < low
        raise InvalidRequest(
            f"Invalid '{name}': integer {'below minimum' if below else 'above maximum'} value. "
            f"Expected a value {'>=' if below else '<='} {low if below else high}, "
            f"but got {value} instead.",
            code="integer_below_min_value" if below else "integer_above_max_value",
            param=name,
        )
    return value


def _text(given: Mapping[str, object], name: str) -> str | None:
    value = given.get(name)
    if value is None or isinstance(value, str):
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
