"""Translation of a request into the words of the model that serves it. Pure, no I/O.

A size stands for a ratio and a tier, a quality for a level of thinking, a style for a sentence of
the prompt: catalog.toml says which.
"""

from dataclasses import replace

from gateway.catalog.sizes import near_size
from gateway.domain import ImageRequest
from gateway.image_models import Model, parse_size


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
