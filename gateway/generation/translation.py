"""Translation of a request into the words of the model that serves it. Pure, no I/O.

A size stands for a ratio and a tier, a quality for a level of thinking, a style for a sentence of
the prompt: catalog.toml says which.
"""

from dataclasses import replace

from gateway.catalog.sizes import near_size
from gateway.domain import ImageRequest
from gateway.errors import InvalidRequest
from gateway.generation.input_images import check_inputs
from gateway.generation.parameters import check_request, check_value
from gateway.image_models import Model, parse_size

HINTS = frozenset(
    {"moderation", "complexity", "input_fidelity", "safety_identifier", "partial_images"}
)
"""Parameters without which a request still asks for the same image."""
NEAR_RATIO_PERCENT = 2
MASK_SENTENCE = "Keep the frame, and everything that this text does not name, as it is."
QUALITIES = {
    "low": ("low",),
    "medium": ("medium", "low"),
    "high": ("high",),
    "xhigh": ("xhigh", "high"),
    "max": ("max", "xhigh", "high"),
    "standard": ("standard", "medium", "low"),
    "hd": ("hd", "high"),
    "auto": ("auto",),
}
"""A quality in the words of a model that may not have it: the first that it has. Without one the
model has a single quality, or chooses by itself."""


def in_own_words(request: ImageRequest) -> ImageRequest:
    """Return a checked request with the size and the prompt that its own model is asked for.

    The same object where the model has these words itself, as for most requests.
    """
    model = request.model
    size = made_size(model, request.size)
    sentence = model.style_sentences.get(request.style or "")
    if sentence is None and size == request.size:
        return request
    return replace(
        request, size=size, prompt=model.styled(request.prompt, request.style), style=None
    )


def made_size(model: Model, size: str | None) -> str | None:
    """Return the size of the model's list that a checked size stands for."""
    percent = model.sizes.ratio_percent
    if percent is None or size is None or size == "auto" or size in model.sizes.fixed:
        return size
    return near_size(model, parse_size(size), ratio_percent=percent)


def in_words_of(request: ImageRequest, model: Model) -> ImageRequest:
    """Return a request that one model would serve in the words of another one.

    Hints that the other model does not take are left out, as is a background that is not
    transparent; the nearest quality is named. A mask that it does not take is applied to the image
    that it made (`continuity.finish`). Everything else must be said as it was.

    Raises:
        GatewayError: the other model cannot say one of the values; `param` names it.
    """
    hints = _hints(request, model)
    png = model.own_format and not request.model.own_format and request.output_format is None
    prompt = model.styled(request.prompt, request.style)
    has_open_mask = request.mask is not None and not model.inputs.masks
    translated = replace(
        request,
        model=model,
        prompt=f"{prompt}\n\n{MASK_SENTENCE}" if has_open_mask else prompt,
        style=None if request.style in model.style_sentences else request.style,
        size=_near(model, request.size),
        quality=_quality(model, request.quality),
        background=request.background
        if request.background == "transparent" or request.background in model.backgrounds
        else None,
        output_format="png" if png else request.output_format,
        moderation=request.moderation if "moderation" in hints else None,
        complexity=request.complexity if "complexity" in hints else None,
        input_fidelity=request.input_fidelity if "input_fidelity" in hints else None,
        safety_identifier=request.safety_identifier if "safety_identifier" in hints else None,
        partial_images=request.partial_images if "partial_images" in hints else 0,
    )
    check_request(translated)
    if has_open_mask:
        _check_frame(translated)
    if request.inputs:
        check_inputs(replace(translated, mask=None) if has_open_mask else translated)
    return translated


def _check_frame(request: ImageRequest) -> None:
    """Refuse to composite an image with an original of another shape, which would be distorted.

    Raises:
        InvalidRequest: the ratios differ; the parameter is the mask.
    """
    if request.size in {None, "auto"}:
        return
    (width, height), original = parse_size(request.size or ""), request.inputs[0]
    differing = abs(width * original.height - height * original.width)
    if 100 * differing > NEAR_RATIO_PERCENT * height * original.width:
        raise InvalidRequest(
            f"{request.model.id} takes no mask, and the image has another aspect ratio than "
            f"{request.size}.",
            param="mask",
        )


def _hints(request: ImageRequest, model: Model) -> frozenset[str]:
    """Return the hints that the model takes with their values in this request."""
    kept = HINTS & model.parameters
    if request.complexity not in model.complexities:
        kept -= {"complexity"}
    return kept if request.input_fidelity in model.inputs.fidelities else kept - {"input_fidelity"}


def _near(model: Model, size: str | None) -> str | None:
    """Return the size that a model makes for one that another model would make.

    Raises:
        InvalidRequest: it makes none of about that ratio and that many pixels.
    """
    if size is None or (size == "auto" and not model.sizes.auto):
        return None
    try:
        check_value("size", size, model)
    except InvalidRequest:
        percent = model.sizes.ratio_percent or NEAR_RATIO_PERCENT
        near = near_size(model, parse_size(size), ratio_percent=percent)
        if near is None:
            raise
        return near
    return made_size(model, size)


def _quality(model: Model, quality: str | None) -> str | None:
    """Return the quality that the model has for one of another model; its own where it has none."""
    if quality is None:
        return None
    return next((one for one in QUALITIES.get(quality, (quality,)) if one in model.qualities), None)
