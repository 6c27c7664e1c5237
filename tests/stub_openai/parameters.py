"""Reading single parameters of a request the way OpenAI does, error texts included."""

import re
from collections.abc import Iterable, Mapping

from tests.stub_openai.catalog import ModelFacts
from tests.stub_openai.errors import ApiError, invalid_type, invalid_value, missing_parameter

Json = Mapping[str, object]

FIXED_SIZES = ("1024x1024", "1024x1536", "1536x1024")
MAX_EDGE = 3840
MIN_PIXELS = 655_360
MAX_PIXELS = 8_294_400
MAX_PROMPT_CHARACTERS = 32_000

_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


def take_int(body: Json, name: str, low: int, high: int, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise invalid_type(name, "an integer", value)
    if value > high:
        text = f"integer above maximum value. Expected a value <= {high}, but got {value} instead."
        raise invalid_value(name, f"Invalid '{name}': {text}", code="integer_above_max_value")
    if value < low:
        text = f"integer below minimum value. Expected a value >= {low}, but got {value} instead."
        raise invalid_value(name, f"Invalid '{name}': {text}", code="integer_below_min_value")
    return value


def take_choice(body: Json, name: str, allowed: tuple[str, ...], default: str) -> str:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise invalid_type(name, f"one of {_listed(allowed)}", value)
    if value not in allowed:
        raise unsupported(name, value, allowed)
    return value


def take_bool(body: Json, name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise invalid_type(name, "a boolean", value)
    return value


def take_text(body: Json, name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise invalid_type(name, "a string", value)
    return value


def take_prompt(body: Json) -> str:
    prompt = take_text(body, "prompt")
    if prompt is None:
        raise missing_parameter("prompt")
    if not prompt:
        text = "Expected a string with minimum length 1, but got an empty string instead."
        raise invalid_value("prompt", f"Invalid 'prompt': {text}", code="empty_string")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        text = (
            "Invalid 'prompt': string too long. Expected a string with maximum length "
            f"{MAX_PROMPT_CHARACTERS}, but got a string with length {len(prompt)} instead."
        )
        raise invalid_value("prompt", text, code="string_above_max_length")
    return prompt


def take_size(body: Json, facts: ModelFacts) -> tuple[int, int] | None:
    """Width and height, or None for `auto`.

    Limits: https://developers.openai.com/api/docs/guides/image-generation
    """
    size = take_text(body, "size")
    if size is None or size == "auto":
        return None
    found = _SIZE.fullmatch(size)
    if facts.family == "fixed":
        if found is None or size not in FIXED_SIZES:
            raise unsupported("size", size, (*FIXED_SIZES, "auto"))
        return int(found[1]), int(found[2])
    if found is None:
        raise _bad_size(size, "Expected 'auto' or a WIDTHxHEIGHT string.")
    width, height = int(found[1]), int(found[2])
    if width % 16 or height % 16:
        raise _bad_size(size, "Width and height must both be divisible by 16.")
    if max(width, height) > MAX_EDGE:
        raise _bad_size(size, f"The longest edge must be less than or equal to {MAX_EDGE}.")
    if max(width, height) > 3 * min(width, height):
        raise _bad_size(size, "The aspect ratio must be between 1:3 and 3:1.")
    if width * height < MIN_PIXELS:
        raise _bad_size(size, "Requested resolution is below the current minimum pixel budget.")
    if width * height > MAX_PIXELS:
        raise _bad_size(size, "Requested resolution exceeds the current maximum pixel budget.")
    return width, height


def unsupported(name: str, value: str, allowed: Iterable[str]) -> ApiError:
    listed = _listed(tuple(allowed))
    return invalid_value(name, f"Invalid value: '{value}'. Supported values are: {listed}.")


def _bad_size(size: str, why: str) -> ApiError:
    return invalid_value("size", f"Invalid size '{size}'. {why}")


def _listed(names: tuple[str, ...]) -> str:
    quoted = [f"'{name}'" for name in names]
    return " and ".join((", ".join(quoted[:-1]), quoted[-1])) if len(quoted) > 1 else quoted[0]
