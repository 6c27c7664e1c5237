"""Token counts and their cost: the stub's own arithmetic, in integers and fractions only.

It shares nothing with the program under test, so that the two can be compared.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from tests.stub_openai.catalog import Family, ModelFacts

PARTIAL_IMAGE_TOKENS = 100
"""Each partial image of a stream costs this much more output.

https://developers.openai.com/api/docs/guides/image-generation
"""

REMOTE_IMAGE_TOKENS = 1033
"""Charged for an input image the stub cannot see (a remote URL, a file id): one of 1024x1024."""

# https://community.openai.com/t/gpt-image-2-output-pricing-calculator-online-and-in-your-code/1382699
_BASES: dict[str, dict[str, int]] = {
    "gpt-image-2": {"low": 16, "medium": 48, "high": 96},
    "gpt-image-2.5": {"low": 16, "medium": 24, "high": 48, "xhigh": 64, "max": 96},
}
# https://developers.openai.com/api/docs/guides/image-generation (cost table of gpt-image-1 and 1.5)
_FIXED_TOKENS: dict[tuple[int, int], dict[str, int]] = {
    (1024, 1024): {"low": 272, "medium": 1056, "high": 4160},
    (1024, 1536): {"low": 408, "medium": 1584, "high": 6240},
    (1536, 1024): {"low": 400, "medium": 1568, "high": 6208},
}


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one call, summed over all its images."""

    input_text_tokens: int
    input_image_tokens: int
    output_image_tokens: int
    output_text_tokens: int

    @property
    def input_tokens(self) -> int:
        return self.input_text_tokens + self.input_image_tokens

    @property
    def output_tokens(self) -> int:
        return self.output_image_tokens + self.output_text_tokens


@lru_cache(maxsize=4096)
def image_output_tokens(family: Family, quality: str, width: int, height: int) -> int:
    """The output tokens of ONE image; `quality` is never `auto` here."""
    if family == "fixed":
        return _FIXED_TOKENS[width, height][quality]
    if family == "gpt-image-2.6":
        of_2_5 = image_output_tokens("gpt-image-2.5", quality, width, height)
        if quality == "low":
            return -(-of_2_5 * 42 // 10)
        return of_2_5 * 4 if quality == "medium" else of_2_5
    base = _BASES[family][quality]
    # round() of a Fraction rounds half to even, as the published calculator does.
    short = round(Fraction(base * min(width, height), max(width, height)))
    return -(-base * short * (2_000_000 + width * height) // 4_000_000)


def prompt_tokens(prompt: str) -> int:
    """A plausible count of text tokens, never above the prompt's UTF-8 length + 10."""
    return -(-len(prompt.encode()) // 4) + 7


def image_input_tokens(width: int, height: int) -> int:
    """Input tokens of one reference image.

    OpenAI states no formula for these models. One patch per 32 x 32 pixels, capped at 1,536
    patches (https://developers.openai.com/api/docs/guides/images-vision), plus 9 for the
    frame gives the 1,033 tokens that were observed for a 1024x1024 image.
    """
    patches = -(-width // 32) * -(-height // 32)
    return min(patches, 1536) + 9


def cost_nano_usd(facts: ModelFacts, usage: Usage) -> int:
    """OpenAI's charge in nano-USD; never rounded, since every price per token is a whole number."""
    return (
        usage.input_text_tokens * facts.text_in_nano
        + usage.input_image_tokens * facts.image_in_nano
        + usage.output_image_tokens * facts.image_out_nano
        + usage.output_text_tokens * facts.text_out_nano
    )
