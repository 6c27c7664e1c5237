"""Turns a request body into an `ImageCall`, or raises the error that OpenAI would answer with."""

import zlib
from dataclasses import dataclass
from typing import Literal

from tests.stub_openai.catalog import MODELS, ModelFacts
from tests.stub_openai.config import StubConfig
from tests.stub_openai.errors import (
    ApiError,
    invalid_type,
    invalid_value,
    model_gone,
    moderation_blocked,
    unknown_parameter,
)
from tests.stub_openai.parameters import (
    FIXED_SIZES,
    Json,
    take_bool,
    take_choice,
    take_int,
    take_prompt,
    take_size,
    take_text,
)
from tests.stub_openai.usage import PARTIAL_IMAGE_TOKENS, Usage, image_output_tokens, prompt_tokens

Endpoint = Literal["generations", "edits"]

BLOCKED_MARK = "[blocked]"
DEFAULT_MODEL = "dall-e-2"
"""The server's default for a missing `model`: a retired model, hence always an error."""

_SHARED = frozenset(
    [
        "prompt",
        "model",
        "n",
        "size",
        "quality",
        "background",
        "output_format",
        "output_compression",
        "stream",
        "partial_images",
        "complexity",
        "frame_count",
        "frame_duration_ms",
        "svg",
        "safety_identifier",
        "user",
    ]
)
_GENERATION_NAMES = _SHARED | {"moderation"}
_EDIT_NAMES = _SHARED | {"input_fidelity"}
# The stub's account has no access to the GIF and SVG previews.
_FORMATS = ("png", "jpeg", "webp")
_PREVIEW_ONLY = ("frame_count", "frame_duration_ms", "svg")
_AUTO_QUALITIES = ("low", "medium", "high")


@dataclass(frozen=True, slots=True)
class ImageCall:
    """A valid call. `auto` is already decided in `width`, `height` and `quality`."""

    endpoint: Endpoint
    model: str
    facts: ModelFacts
    prompt: str
    n: int
    width: int
    height: int
    quality: str
    transparent: bool
    output_format: str
    stream: bool
    partial_images: int
    safety_identifier: str | None
    usage: Usage

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"


def find_model(body: Json, config: StubConfig) -> tuple[str, ModelFacts]:
    """The first check of every image call: nothing else matters if the model is gone."""
    model = take_text(body, "model") or DEFAULT_MODEL
    facts = MODELS.get(model)
    if facts is None or model in config.retired_models:
        raise model_gone(model)
    return model, facts


def read_call(
    body: Json,
    config: StubConfig,
    *,
    endpoint: Endpoint,
    request_id: str,
    input_image_tokens: int = 0,
) -> ImageCall:
    """Validate everything but the images of an edit; raise `ApiError`.

    Parameters: https://developers.openai.com/api/reference/resources/images
    """
    model, facts = find_model(body, config)
    known = _GENERATION_NAMES if endpoint == "generations" else _EDIT_NAMES
    if not body.keys() <= known:
        raise unknown_parameter(next(name for name in body if name not in known))
    prompt = take_prompt(body)
    n = take_int(body, "n", 1, 10, 1)
    size = take_size(body, facts)
    quality = take_choice(body, "quality", (*facts.qualities, "auto"), "auto")
    background = take_choice(body, "background", ("transparent", "opaque", "auto"), "auto")
    output_format = take_choice(body, "output_format", _FORMATS, "png")
    compression = take_int(body, "output_compression", 0, 100, 100)
    stream = take_bool(body, "stream")
    partial_images = take_int(body, "partial_images", 0, 3, 0)
    _check_rare(body, model, facts)
    if background == "transparent" and output_format == "jpeg":
        raise invalid_value("background", "Transparent background is not supported for JPEG.")
    if compression != 100 and output_format == "png":
        text = "Compression less than 100 is not supported for PNG output format."
        raise invalid_value("output_compression", text, code="invalid_png_output_compression")
    if stream and n > 1:
        raise ApiError(400, "Streaming is only supported with n=1.")
    if BLOCKED_MARK in prompt:
        raise moderation_blocked(request_id)
    if size is None or quality == "auto":
        size, quality = _decide_auto(config.seed, prompt, size, quality)
    sent_partials = partial_images if stream else 0
    output = n * image_output_tokens(facts.family, quality, *size)
    return ImageCall(
        endpoint=endpoint,
        model=model,
        facts=facts,
        prompt=prompt,
        n=n,
        width=size[0],
        height=size[1],
        quality=quality,
        transparent=background == "transparent",
        output_format=output_format,
        stream=stream,
        partial_images=sent_partials,
        safety_identifier=take_text(body, "safety_identifier") or take_text(body, "user") or None,
        usage=Usage(
            input_text_tokens=prompt_tokens(prompt),
            input_image_tokens=input_image_tokens,
            output_image_tokens=output + sent_partials * PARTIAL_IMAGE_TOKENS,
            output_text_tokens=config.output_text_tokens if facts.text_out_nano else 0,
        ),
    )


def _decide_auto(
    seed: int, prompt: str, size: tuple[int, int] | None, quality: str
) -> tuple[tuple[int, int], str]:
    # By seed and prompt, not by arrival: concurrent tests must not depend on their order.
    drawn = zlib.crc32(f"{seed}:{prompt}".encode())
    if quality == "auto":
        quality = _AUTO_QUALITIES[drawn % len(_AUTO_QUALITIES)]
    if size is None:
        width, height = FIXED_SIZES[(drawn >> 8) % len(FIXED_SIZES)].split("x")
        size = int(width), int(height)
    return size, quality


def _check_rare(body: Json, model: str, facts: ModelFacts) -> None:
    take_choice(body, "moderation", ("low", "auto"), "auto")
    for name in _PREVIEW_ONLY:
        if body.get(name) is not None:
            fmt = "svg" if name == "svg" else "gif"
            raise invalid_value(name, f"'{name}' is only supported with output_format={fmt}.")
    if body.get("complexity") is not None:
        if facts.family != "gpt-image-2.6":
            raise _not_for_model("complexity", model, "invalid_value")
        take_choice(body, "complexity", ("low", "medium", "high"), "high")
    fidelity = take_text(body, "input_fidelity")
    if fidelity is not None:
        if not facts.input_fidelities:
            raise _not_for_model("input_fidelity", model, "invalid_input_fidelity_model")
        take_choice(body, "input_fidelity", tuple(sorted(facts.input_fidelities)), "low")


def _not_for_model(name: str, model: str, code: str) -> ApiError:
    text = f"The model '{model}' does not support the '{name}' parameter."
    return invalid_value(name, text, code=code)


def require_object(body: object) -> Json:
    if not isinstance(body, dict):
        raise invalid_type("body", "an object", body)
    return body
