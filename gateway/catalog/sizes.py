"""Search for the size that a model makes in place of a requested one."""

from collections.abc import Iterator
from math import log

from gateway.image_models import Model, SizeRule, parse_size

EXPERIMENTAL_ABOVE_PIXELS = 2560 * 1440
"""Larger images are accepted, but their quality varies.
https://developers.openai.com/api/docs/guides/image-generation"""

RATIO_WEIGHT = 100.0
"""One percent of difference in aspect ratio counts as much as a factor of 2.7 in pixels. The ratio
comes first, but a tiny gain in it does not justify an image several times as large and costly."""


def fitting_size(model: Model, wished: tuple[int, int]) -> str:
    """Return the accepted size nearest to `wished`, first in aspect ratio, then in pixels.

    `wished` is width and height in pixels, both positive; the result is `"WIDTHxHEIGHT"`. A size
    that the model's vendor calls experimental is never chosen, even if it is the one requested,
    nor one of a dearer tier than the model's usual one.
    """
    rule = model.sizes
    sizes = [parse_size(size) for size in rule.unspecified or rule.fixed] or _sizes_in_range(
        rule, wished
    )
    width, height = min(sizes, key=lambda size: _distance(size, wished))
    return f"{width}x{height}"


def near_size(model: Model, wished: tuple[int, int], *, ratio_percent: int) -> str | None:
    """Return the size that stands for `wished`: nearly its ratio, and not far from its pixels.

    `wished` is width and height in pixels, both positive. The ratio may differ by `ratio_percent`
    percent, the pixels by the factor that the model's rule says. None if there is no such size.
    """
    rule = model.sizes
    width, height = wished
    near = [
        (made, size)
        for size in rule.fixed or (fitting_size(model, wished),)
        for made in [parse_size(size)]
        for across, down in [_ratio(model, size) or made]
        if 100 * abs(width * down - height * across) <= ratio_percent * height * across
        and max(width * height, made[0] * made[1])
        <= rule.pixels_factor * min(width * height, made[0] * made[1])
    ]
    return min(near, key=lambda one: _distance(one[0], wished))[1] if near else None


def _ratio(model: Model, size: str) -> tuple[int, int] | None:
    """Return the ratio by which a vendor is asked for a size, from which its pixels may differ."""
    shape = model.shapes.get(size)
    if shape is None:
        return None
    across, down = shape.ratio.split(":")
    return int(across), int(down)


def _distance(size: tuple[int, int], wished: tuple[int, int]) -> float:
    (width, height), (wished_width, wished_height) = size, wished
    off_ratio = abs(log(width * wished_height) - log(height * wished_width))
    off_pixels = abs(log(width * height) - log(wished_width * wished_height))
    return RATIO_WEIGHT * off_ratio + off_pixels


def _sizes_in_range(rule: SizeRule, wished: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield for every width the two heights around the wished ratio, clamped to the rule.

    No other height of that width can be nearer: the distance grows on both sides of the ratio.
    """
    step = rule.multiple_of
    max_pixels = min(rule.max_pixels, EXPERIMENTAL_ABOVE_PIXELS)
    for width in range(step, rule.max_edge + 1, step):
        lowest = _up(max(-(-width // rule.max_ratio), -(-rule.min_pixels // width)), step)
        highest = _down(min(width * rule.max_ratio, max_pixels // width, rule.max_edge), step)
        if lowest <= highest:
            ideal = width * wished[1] // wished[0]
            yield width, min(max(_down(ideal, step), lowest), highest)
            yield width, min(max(_up(ideal + 1, step), lowest), highest)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def _down(number: int, step: int) -> int:
    return number // step * step
