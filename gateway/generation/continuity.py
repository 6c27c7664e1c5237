"""Continuity: a retired model's request, said in its successor's words. Pure.

The client's contract stays the retired model's: its sizes, its exact masks, its answer's shape.
What the successor cannot do by itself is done to the finished picture (`Finish`).
"""

from dataclasses import dataclass, replace

from gateway.domain import ImageRequest, InputImage, Operation
from gateway.image_models import Model, parse_size

VARIATION_PROMPT = (
    "Make a variation of this image: the same subject, composition, style and colours, "
    "with new details."
)
STYLE_SENTENCES = {
    "vivid": "Style: vivid, hyper-real and dramatic.",
    "natural": "Style: natural and understated, less hyper-real.",
}


@dataclass(frozen=True, slots=True)
class Finish:
    """What is left to do to each picture: bring it to a size, in pixels, behind an exact mask.

    Where `mask` is not fully transparent, the pixels of `original` come back unchanged.
    """

    width: int
    height: int
    original: InputImage | None = None
    mask: InputImage | None = None


def serve(request: ImageRequest, serving: Model) -> ImageRequest:
    """What is bought from `serving` to answer `request`: the request itself where it lives."""
    if serving.id == request.model.id:
        return request
    words = request.model.continuity
    fidelity = request.input_fidelity
    return replace(
        request,
        model=serving,
        operation=Operation.EDIT if request.inputs else Operation.GENERATION,
        prompt=_prompt(request),
        mask=_mask(request),
        size=words.sizes.get(request.size or "", request.size),
        quality=words.qualities.get(request.quality or "", request.quality),
        output_format="png" if words.bare_answer else request.output_format,
        input_fidelity=fidelity if fidelity in serving.inputs.fidelities else None,
        style=None,
    )


def finish(request: ImageRequest, served: ImageRequest) -> Finish | None:
    """What the successor's pictures still lack of the contract; None where they are right."""
    if served.model.id == request.model.id or not request.model.continuity.sizes:
        return None
    wanted = request.size or request.model.continuity.sizes[""]
    width, height = parse_size(wanted)
    if request.operation is Operation.EDIT and request.model.inputs.exact_mask:
        return Finish(width, height, request.inputs[0], served.mask)
    return None if wanted == served.size else Finish(width, height)


def _prompt(request: ImageRequest) -> str:
    if request.operation is Operation.VARIATION:
        return VARIATION_PROMPT
    sentence = STYLE_SENTENCES.get(request.style or "")
    return request.prompt if sentence is None else f"{request.prompt}\n\n{sentence}"


def _mask(request: ImageRequest) -> InputImage | None:
    """DALL·E 2 took a picture's own transparency for the mask where none was given."""
    own_alpha = request.operation is Operation.EDIT and request.model.inputs.exact_mask
    return request.mask or (request.inputs[0] if own_alpha else None)
