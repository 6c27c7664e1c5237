"""The requests and answers of OpenAI-compatible hosts that a models file declares. Pure.

They take the route and the envelope of OpenAI, and parameters, errors and answers of their own.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from urllib.parse import urljoin

import pybase64

from gateway.domain import ImageRequest
from gateway.image_models import Wording, parse_size
from gateway.image_parameters import MAX_SEED
from gateway.provider_answers import Outcome, ProviderAnswer
from gateway.providers import host_errors
from gateway.providers.base import ProviderFailure
from gateway.providers.image_sizes import read_image_header
from gateway.providers.openai.answers import refused

USUAL_FIELDS = {"steps": "num_inference_steps"}
HEADER_CHARACTERS = 400_000
"""Base64 in which an image's size stands; metadata may come before it."""


def seeded(request: ImageRequest) -> ImageRequest:
    """Return the request with a seed, where the model takes one and the caller gave none."""
    if "seed" not in request.model.parameters or request.seed is not None:
        return request
    seed = random.randrange(MAX_SEED)  # noqa: S311 - of an image, not a secret
    return replace(request, seed=seed)


def fields_of(request: ImageRequest, wording: Wording) -> dict[str, object]:
    """Return the fields of the call in the host's words."""
    size = wording.default_size if request.size in {None, "auto"} else str(request.size)
    width, height = parse_size(size)
    defaults = wording.defaults
    steps = wording.steps.get(request.quality or "")
    negative = _either(request.negative_prompt, defaults.get("negative_prompt"))
    prompt = request.prompt
    if wording.negative_mark and negative is not None:
        prompt, negative = f"{prompt}{wording.negative_mark}{negative}", None
    values: dict[str, object | None] = {
        "model": wording.name,
        "prompt": prompt,
        "n": request.n,
        "size": size,
        "width": width if "width" in wording.fields else None,
        "height": height if "height" in wording.fields else None,
        # Where the file gives a quality a number of steps, the host knows no qualities.
        "quality": request.quality if steps == 0 else None,
        "negative_prompt": negative,
        "seed": _either(request.seed, defaults.get("seed")),
        "steps": _either(_either(request.steps, steps or None), defaults.get("steps")),
        "guidance_scale": _either(request.guidance_scale, defaults.get("guidance_scale")),
        "background": request.background,
        "moderation": request.moderation,
        "style": request.style,
        "user": request.user,
        "response_format": "b64_json",
    }
    names = {**USUAL_FIELDS, **wording.fields}
    sent = {
        names.get(name, name): value
        for name, value in values.items()
        if value is not None and name not in wording.dropped
    }
    return {**sent, **wording.constants}


def _either(value: object | None, default: object | None) -> object | None:
    return default if value is None else value


def address_of(url: str, base_url: str) -> str:
    """Return the address of an image; some hosts name its path alone."""
    return urljoin(base_url, url) if url.startswith("/") and not url.startswith("//") else url


def described(
    answer: ProviderAnswer, request: ImageRequest, *, microseconds: int
) -> ProviderAnswer:
    """Say of an answer what its bytes say: hosts name no size or format, or a wrong one."""
    head = answer.images[0][:HEADER_CHARACTERS]
    try:
        header = read_image_header(pybase64.b64decode(head[: len(head) // 4 * 4]))
    except ValueError:
        header = None
    return replace(
        answer,
        size=answer.size if header is None else header.size,
        output_format="png" if header is None else header.format,
        quality=request.quality if answer.quality is None else answer.quality,
        usage=None,  # the price is the operator's own, by the image or by the second
        seeds=() if request.seed is None else (request.seed,) * len(answer.images),
        microseconds=microseconds,
    )


def refused_by_host(status: int, headers: Mapping[str, str], content: bytes) -> ProviderFailure:
    """Return the failure of an error status, in OpenAI's envelope or in FastAPI's words."""
    failure = refused(status, headers, content)
    if failure.outcome is Outcome.AMBIGUOUS:
        return host_errors.refused(status, headers, content)
    return failure


def input_names(wording: Wording, number: int) -> Sequence[str]:
    """Return the names of the form's files: the images, and the mask."""
    image = wording.input_fields.get("image", "image")
    mask = wording.input_fields.get("mask", "mask")
    return (image if number == 1 else f"{image}[]", mask)
