"""Quotes, estimates and costs of calls. Pure functions: no I/O, no clock."""

import re
from collections.abc import Iterable
from math import isqrt

from gateway.domain import CostFactors, ImageRequest, Price, Quote
from gateway.errors import NotConfigured
from gateway.image_models import PARTIAL_IMAGE_TOKENS, AutoChoice, Model, Unit, parse_size
from gateway.money import NanoUsd, token_cost
from gateway.provider_answers import ProviderAnswer, Usage

PROMPT_OVERHEAD_TOKENS = 32
"""Tokens that a provider may add around the prompt; a token has at least one UTF-8 byte."""
MICROSECONDS = 1_000_000
_SIZE = re.compile(r"[1-9][0-9]{1,4}x[1-9][0-9]{1,4}")


def quote(request: ImageRequest, price: Price) -> Quote:
    """Compute an upper bound for the cost of `request`; unspecified options count as dearest.

    Raises:
        NotConfigured: the price is by the token, but the model's tokens cannot be bounded.
    """
    terms, unit = terms_of(request), unit_of(request.model, price)
    if unit is Unit.IMAGE:
        return Quote(price, NanoUsd(request.n * price.per_image_nano), terms)
    if unit is Unit.SECOND:
        calls = request.n if request.model.one_image_per_call else 1
        seconds = calls * request.model.read_timeout_seconds
        return Quote(price, NanoUsd(seconds * price.per_second_nano), terms)
    if request.model.unit is not Unit.TOKEN:
        raise NotConfigured(
            f"The price of {price.model} is by the token, but its calls are billed by the "
            f"{request.model.unit}. The operator adds a price of that kind.",
            code="price_unknown",
        )
    return Quote(price, _bound(terms, price, _dearest_tokens(request)), terms)


def unit_of(model: Model, price: Price) -> Unit:
    """Return the unit that calls of the model are billed by at this price.

    The model may have had another unit when the call began or the price was set: by its present
    one, whose rates are zero, the call would be free.
    """
    dearest = {
        Unit.TOKEN: max(
            *(price.text_input_nano, price.image_input_nano),
            *(price.text_output_nano, price.image_output_nano),
        ),
        Unit.IMAGE: price.per_image_nano,
        Unit.SECOND: price.per_second_nano,
    }
    if dearest[model.unit]:
        return model.unit
    return next((unit for unit, rate in dearest.items() if rate), model.unit)


def terms_of(request: ImageRequest) -> CostFactors:
    """Extract the terms that the cost of `request` depends on."""
    is_open = request.quality in {None, "auto"}, request.size in {None, "auto"}
    return CostFactors(
        n=request.n,
        quality=None if is_open[0] else request.quality,
        size=None if is_open[1] else request.size,
        # Per image, so that the bound holds even if a vendor charges the prompt once per image.
        text_input_tokens=request.n * (len(request.prompt.encode()) + PROMPT_OVERHEAD_TOKENS),
        image_input_tokens=_input_tokens(request)
        * (request.n if request.model.one_image_per_call else 1),
        text_output_tokens=request.n * request.model.text_output_bound,
        partial_images=request.partial_images,
    )


def estimate(
    terms: CostFactors, model: Model, price: Price, usual: AutoChoice, *, at_most: NanoUsd
) -> NanoUsd:
    """Compute the bound for a request, with an unspecified quality or size taken as `usual`.

    `at_most` is the reserved amount, also used for a quality or size no longer in the catalogue.
    """
    unit = unit_of(model, price)
    if unit is Unit.IMAGE:
        return min(NanoUsd(terms.n * price.per_image_nano), at_most)
    if unit is Unit.SECOND:
        return at_most  # a call of unknown outcome may have run until its time was up
    choice = AutoChoice(terms.quality or usual.quality, terms.size or usual.size)
    if not _is_of(model, choice):
        return at_most
    tokens = model.tokens.output_tokens(choice.quality, *parse_size(choice.size))
    return min(_bound(terms, price, tokens), at_most)


def choice_served(request: ImageRequest, answer: ProviderAnswer) -> AutoChoice | None:
    """Return the quality and size of an answer; None if it names none that the model has."""
    choice = AutoChoice(answer.quality or request.quality or "", answer.size or request.size or "")
    return choice if _is_of(request.model, choice) else None


def likely_choice(request: ImageRequest, answer: ProviderAnswer) -> AutoChoice:
    """Return the quality and size to estimate an answer by: those it names, else those asked for.

    The catalogue's usual ones stand for what neither names.
    """
    usual = request.model.usual
    quality, size = answer.quality or request.quality, answer.size or request.size
    likely = (
        AutoChoice(quality or "", size or ""),
        AutoChoice(quality or "", usual.size),
        AutoChoice(usual.quality, size or ""),
    )
    return next((choice for choice in likely if _is_of(request.model, choice)), usual)


def _is_of(model: Model, choice: AutoChoice) -> bool:
    if not _SIZE.fullmatch(choice.size):
        return False
    tokens = model.tokens
    return choice.quality in tokens.base or choice.size in tokens.fixed.get(choice.quality, ())


def _bound(terms: CostFactors, price: Price, image_tokens: int) -> NanoUsd:
    return cost(
        Usage(
            text_input_tokens=terms.text_input_tokens,
            image_input_tokens=terms.image_input_tokens,
            text_output_tokens=terms.text_output_tokens,
            image_output_tokens=terms.n * image_tokens
            + terms.partial_images * PARTIAL_IMAGE_TOKENS,
        ),
        price,
    )


def cost_of_call(
    request: ImageRequest,
    price: Price,
    *,
    usage: Usage | None,
    images: int,
    microseconds: int | None = None,
) -> NanoUsd | None:
    """Compute the cost of a charged call; None if the provider has not reported its usage.

    For a model billed by the image, only the number of images counts; for one billed by the
    second, the time that its calls took.
    """
    unit = unit_of(request.model, price)
    if unit is Unit.IMAGE:
        return NanoUsd(images * price.per_image_nano)
    if unit is Unit.SECOND:
        if microseconds is None:
            return None
        return NanoUsd(-(-microseconds * price.per_second_nano // MICROSECONDS))
    return None if usage is None else cost(usage, price)


def cost(usage: Usage, price: Price) -> NanoUsd:
    """Compute the cost of a usage, each component rounded up once."""
    return NanoUsd(
        token_cost(usage.text_input_tokens, price.text_input_nano)
        + token_cost(usage.image_input_tokens, price.image_input_nano)
        + token_cost(usage.text_output_tokens, price.text_output_nano)
        + token_cost(usage.image_output_tokens, price.image_output_nano)
    )


def _input_tokens(request: ImageRequest) -> int:
    """Count the tokens of every input image, including the mask and the markup."""
    images = (*request.inputs, request.mask, request.markup)
    high_fidelity = request.input_fidelity == "high"
    rule = request.model.inputs
    return sum(
        rule.input_tokens(image.width, image.height, high_fidelity=high_fidelity)
        for image in images
        if image is not None
    )


def _dearest_tokens(request: ImageRequest) -> int:
    model = request.model
    open_quality = request.quality in {None, "auto"}
    named = [q for q in model.qualities if q != "auto"] or list(model.tokens.fixed)
    qualities = named if open_quality else [request.quality]
    return max(
        model.tokens.output_tokens(quality, width, height)
        for quality in qualities
        if quality is not None
        for width, height in _possible_sizes(request)
    )


def _possible_sizes(request: ImageRequest) -> Iterable[tuple[int, int]]:
    """Yield the requested size; if unspecified, every size of the model, or the dearest.

    For a given number of pixels the formula is dearest for a square. A model left to choose stays
    within the sizes that its vendor does not call experimental.
    """
    if request.size not in {None, "auto"}:
        return [parse_size(request.size or "")]
    rule = request.model.sizes
    if rule.fixed:
        return [parse_size(size) for size in rule.unspecified or rule.fixed]
    edge = isqrt(rule.auto_pixels)
    return [(edge, edge)]
