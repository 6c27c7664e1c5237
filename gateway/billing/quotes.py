"""What a call can cost at most, and what it did cost. Pure: no I/O, no clock."""

from collections.abc import Iterable
from math import isqrt

from gateway.domain import ImageRequest, Price, Quote, Usage
from gateway.image_models import PARTIAL_IMAGE_TOKENS, parse_size
from gateway.money import NanoUsd, token_cost

PROMPT_OVERHEAD_TOKENS = 32
"""What a provider may add around the prompt; a token is never shorter than one UTF-8 byte."""


def quote(request: ImageRequest, price: Price) -> Quote:
    """An upper bound for the cost of `request`; what the client left open counts as dearest."""
    if request.model.per_image:
        return Quote(price=price, amount_nano=NanoUsd(request.n * price.per_image_nano))
    usage = Usage(
        # Should a vendor charge the prompt once per image, the bound still holds.
        text_input_tokens=request.n * (len(request.prompt.encode()) + PROMPT_OVERHEAD_TOKENS),
        image_input_tokens=_input_tokens(request),
        text_output_tokens=request.n * request.model.text_output_bound,
        image_output_tokens=request.n * _dearest_tokens(request)
        + request.partial_images * PARTIAL_IMAGE_TOKENS,
    )
    return Quote(price=price, amount_nano=cost(usage, price))


def cost_of_call(
    request: ImageRequest, price: Price, *, usage: Usage | None, images: int
) -> NanoUsd | None:
    """What a call did cost that was charged; None where nobody has said.

    A model that bills by the image says it by the images; what else it reports changes nothing.
    """
    if request.model.per_image:
        return NanoUsd(images * price.per_image_nano)
    return None if usage is None else cost(usage, price)


def cost(usage: Usage, price: Price) -> NanoUsd:
    """The cost of what was used: each component rounded up once."""
    return NanoUsd(
        token_cost(usage.text_input_tokens, price.text_input_nano)
        + token_cost(usage.image_input_tokens, price.image_input_nano)
        + token_cost(usage.text_output_tokens, price.text_output_nano)
        + token_cost(usage.image_output_tokens, price.image_output_nano)
    )


def _input_tokens(request: ImageRequest) -> int:
    """Every picture that goes in, the mask and the markup among them."""
    pictures = (*request.inputs, request.mask, request.markup)
    high_fidelity = request.input_fidelity == "high"
    rule = request.model.inputs
    return sum(
        rule.input_tokens(picture.width, picture.height, high_fidelity=high_fidelity)
        for picture in pictures
        if picture is not None
    )


def _dearest_tokens(request: ImageRequest) -> int:
    model = request.model
    open_quality = request.quality in {None, "auto"}
    qualities = [q for q in model.qualities if q != "auto"] if open_quality else [request.quality]
    return max(
        model.tokens.output_tokens(quality, width, height)
        for quality in qualities
        if quality is not None
        for width, height in _possible_sizes(request)
    )


def _possible_sizes(request: ImageRequest) -> Iterable[tuple[int, int]]:
    """The asked size; where it is open, all that the model may choose, or the dearest of them.

    For a given number of pixels the formula is dearest for a square. A model left to choose stays
    within the sizes its vendor does not call experimental.
    """
    if request.size not in {None, "auto"}:
        return [parse_size(request.size or "")]
    rule = request.model.sizes
    if rule.fixed:
        return [parse_size(size) for size in rule.fixed]
    edge = isqrt(rule.auto_pixels)
    return [(edge, edge)]
