"""The controls of the playground's form: only the parameters that a model takes. Pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gateway.domain import Operation
from gateway.generation.parameters import ENDPOINTS
from gateway.image_models import Model, SizeRule
from gateway.image_parameters import Kind, Parameter, parameters_of

NOT_SHOWN = frozenset({"prompt", "model", "response_format", "stream", "safety_identifier", "user"})
"""Parameters with a place of their own in the form, and those for programs."""
FIRST = ("size", "quality", "n")
"""Controls that are always in sight; the others are below "More options"."""
LABELS = {
    "n": "Number of images",
    "output_format": "File format",
    "output_compression": "Compression",
    "partial_images": "Partial images on the way",
    "guidance_scale": "Guidance",
}
HINTS = {
    "partial_images": "Only for one image. Each costs 100 more output tokens.",
    "output_compression": "0 to 100, for jpeg and webp.",
    "seed": "The same seed and request make the same image.",
}
SUGGESTED = ("1024x1024", "1536x1024", "1024x1536", "2048x2048", "2048x1152", "3840x2160")
USUAL = {"n": "1", "partial_images": "2"}
TIMES = " \N{MULTIPLICATION SIGN} "
OPEN_CHOICE = ("", "Model's choice")


@dataclass(frozen=True, slots=True)
class Control:
    """One control of the form. `choices`: pairs of value and text; `suggestions` for free text."""

    name: str
    label: str
    kind: Literal["select", "number", "text"]
    value: str
    choices: tuple[tuple[str, str], ...] = ()
    suggestions: tuple[str, ...] = ()
    minimum: str = ""
    maximum: str = ""
    step: str = ""
    hint: str = ""
    is_first: bool = False


def takes(model: Model, parameter: Parameter) -> bool:
    """Tell whether a model takes a parameter."""
    return parameter.of_every_model or parameter.name in model.parameters


def controls_of(
    model: Model, operation: Operation, values: Mapping[str, str]
) -> tuple[Control, ...]:
    """Build the controls of a model and operation, with the values that were typed."""
    shown = (
        one for one in parameters_of(operation) if one.name not in NOT_SHOWN and takes(model, one)
    )
    found = (_control(one, model, values) for one in shown)
    return tuple(control for control in found if control is not None)


def operations_of(model: Model) -> tuple[Operation, ...]:
    """The operations that a model serves."""
    return tuple(one for one in Operation if ENDPOINTS[one] in model.endpoints)


def _control(parameter: Parameter, model: Model, values: Mapping[str, str]) -> Control | None:
    name = parameter.name
    value = values.get(name, USUAL.get(name, ""))
    label = LABELS.get(name, name.replace("_", " ").capitalize())
    hint, is_first = HINTS.get(name, ""), name in FIRST
    if parameter.kind is Kind.SIZE:
        return _size(model.sizes, parameter, label, value)
    if parameter.kind is Kind.CHOICE:
        choices_of = parameter.choices_of
        choices = parameter.choices if choices_of is None else choices_of(model)
        if not choices:
            return None
        pairs = (OPEN_CHOICE, *((one, one) for one in choices))
        return Control(name, label, "select", value, pairs, hint=hint, is_first=is_first)
    if parameter.kind in {Kind.INTEGER, Kind.NUMBER}:
        maximum_of = parameter.maximum_of
        maximum = parameter.maximum if maximum_of is None else maximum_of(model)
        return Control(
            name,
            label,
            "number",
            value,
            minimum="" if parameter.minimum is None else str(parameter.minimum),
            maximum="" if maximum is None else str(maximum),
            step="1" if parameter.kind is Kind.INTEGER else "any",
            hint=hint,
            is_first=is_first,
        )
    return Control(name, label, "text", value, hint=hint, is_first=is_first)


def _size(rule: SizeRule, parameter: Parameter, label: str, value: str) -> Control:
    fixed = rule.fixed or parameter.choices
    auto = (("auto", "auto"),) if rule.auto and not parameter.choices else ()
    if fixed:
        named = tuple((one, one.replace("x", TIMES)) for one in fixed)
        return Control("size", label, "select", value, (OPEN_CHOICE, *auto, *named), is_first=True)
    suggested = tuple(one for one in SUGGESTED if _is_allowed(one, rule))
    hint = f"Width x height, each divisible by {rule.multiple_of}, or auto."
    return Control(
        "size", label, "text", value, suggestions=(*suggested, "auto"), hint=hint, is_first=True
    )


def _is_allowed(size: str, rule: SizeRule) -> bool:
    width, height = (int(edge) for edge in size.split("x"))
    return (
        not (width % rule.multiple_of or height % rule.multiple_of)
        and max(width, height) <= rule.max_edge
        and min(width, height) >= rule.min_edge
        and rule.min_pixels <= width * height <= rule.max_pixels
    )
