"""Continuity: map a retired model's request to its successor's parameters. Pure, no I/O.

The client keeps the retired model's contract: its sizes, exact masks and response shape. Features
that the successor lacks are applied to the output image afterwards (`PostProcessing`).
"""

from dataclasses import dataclass, replace

from gateway.catalog.sizes import fitting_size
from gateway.domain import ImageRequest, InputImage, Operation
from gateway.generation import translation
from gateway.image_models import Model, parse_size

VARIATION_PROMPT = (
    "Make a variation of this image: the same subject, composition, style and colours, "
    "with new details."
)


@dataclass(frozen=True, slots=True)
class PostProcessing:
    """Post-processing of each output image: resize it to a size in pixels, apply an exact mask.

    Where `mask` is not fully transparent, the pixels of `original` are restored unchanged.
    """

    width: int
    height: int
    original: InputImage | None = None
    mask: InputImage | None = None


@dataclass(frozen=True, slots=True)
class Encoding:
    """The file format that each output image must have; `quality` from 0 to 100, None if open."""

    format: str
    quality: int | None = None


def serve(request: ImageRequest, serving: Model) -> ImageRequest:
    """Return the request to send to `serving`, the requested model itself or its successor."""
    if serving.id == request.model.id:
        return translation.in_own_words(request)
    words = request.model.continuity
    fidelity = request.input_fidelity
    return replace(
        request,
        model=serving,
        operation=Operation.EDIT if request.inputs else Operation.GENERATION,
        prompt=_prompt(request, serving),
        mask=_mask(request),
        size=_size(request, serving),
        quality=words.qualities.get(request.quality or "", request.quality),
        output_format="png" if words.bare_answer else request.output_format,
        input_fidelity=fidelity if fidelity in serving.inputs.fidelities else None,
        style=None,
    )


def finish(request: ImageRequest, served: ImageRequest) -> PostProcessing | None:
    """Return the post-processing that the contract still requires, or None if there is none."""
    promised = request.model.continuity
    if served.model.id == request.model.id or not promised.sizes or not promised.resizes:
        return _applied_mask(served)
    wanted = request.size or promised.sizes[""]
    width, height = parse_size(wanted)
    if request.operation is Operation.EDIT and request.model.inputs.exact_mask:
        return PostProcessing(width, height, request.inputs[0], served.mask)
    return None if wanted == served.size else PostProcessing(width, height)


def _applied_mask(served: ImageRequest) -> PostProcessing | None:
    """Return the compositing by a mask that the serving model did not take.

    At the size that was asked for, else at the original's own, whose pixels then stay as they are.
    """
    if served.mask is None or served.model.inputs.masks:
        return None
    original = served.inputs[0]
    size = None if served.size in {None, "auto"} else served.size
    width, height = (original.width, original.height) if size is None else parse_size(size)
    return PostProcessing(width, height, original, served.mask)


def encoding(served: ImageRequest) -> Encoding | None:
    """Return the encoding that was asked for, if the vendor chooses formats by itself."""
    if not served.model.own_format or served.output_format is None:
        return None
    quality = served.output_compression
    return Encoding(served.output_format, quality if served.output_format != "png" else None)


def _size(request: ImageRequest, serving: Model) -> str | None:
    """Return the size to ask `serving` for: one that stands for it, else the nearest usual one."""
    size = request.model.continuity.sizes.get(request.size or "", request.size)
    fixed = serving.sizes.fixed
    if size is None or size == "auto" or size in fixed or not fixed:
        return size
    percent = serving.sizes.ratio_percent
    near = None if percent is None else translation.made_size(serving, size)
    return near or fitting_size(serving, parse_size(size))


def _prompt(request: ImageRequest, serving: Model) -> str:
    if request.operation is Operation.VARIATION:
        return VARIATION_PROMPT
    return serving.styled(request.prompt, request.style)


def _mask(request: ImageRequest) -> InputImage | None:
    """Return the mask; DALL·E 2 used the input image's own transparency when none was given."""
    own_alpha = request.operation is Operation.EDIT and request.model.inputs.exact_mask
    return request.mask or (request.inputs[0] if own_alpha else None)
