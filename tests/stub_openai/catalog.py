"""The models the stub knows and their token prices, from OpenAI's published pages.

Sources: https://developers.openai.com/api/docs/pricing and
https://developers.openai.com/api/docs/deprecations (read November 2026).
"""

from dataclasses import dataclass
from typing import Literal

Family = Literal["fixed", "gpt-image-2", "gpt-image-2.5", "gpt-image-2.6"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model. Prices are nano-USD (1e-9 USD) per token, so every cost is an exact integer."""

    family: Family
    text_in_nano: int
    image_in_nano: int
    image_out_nano: int
    text_out_nano: int
    created: int
    shutdown_date: str | None
    input_fidelities: frozenset[str] = frozenset()

    @property
    def qualities(self) -> tuple[str, ...]:
        if self.family in ("gpt-image-2.5", "gpt-image-2.6"):
            return ("low", "medium", "high", "xhigh", "max")
        return ("low", "medium", "high")


_CLOSING = "2026-12-01"
_BOTH = frozenset({"low", "high"})
_ONLY_LOW = frozenset({"low"})

_GPT_IMAGE_1_5 = ModelFacts("fixed", 5000, 8000, 32000, 10000, 1765843200, _CLOSING, _BOTH)
_GPT_IMAGE_2 = ModelFacts("gpt-image-2", 5000, 8000, 30000, 0, 1776729600, None)
_GPT_IMAGE_2_5 = ModelFacts("gpt-image-2.5", 5000, 8000, 30000, 0, 1788825600, None)
_GPT_IMAGE_2_6 = ModelFacts("gpt-image-2.6", 5000, 8000, 30000, 0, 1793750400, None)

MODELS: dict[str, ModelFacts] = {
    "gpt-image-1-mini": ModelFacts("fixed", 2000, 2500, 8000, 0, 1759708800, _CLOSING, _ONLY_LOW),
    "gpt-image-1.5": _GPT_IMAGE_1_5,
    "gpt-image-1.5-2025-12-16": _GPT_IMAGE_1_5,
    "chatgpt-image-latest": _GPT_IMAGE_1_5,
    "gpt-image-2": _GPT_IMAGE_2,
    "gpt-image-2-2026-04-21": _GPT_IMAGE_2,
    "gpt-image-2.5-sunburst": _GPT_IMAGE_2_5,
    "gpt-image-2.5-sunburst-2026-09-08": _GPT_IMAGE_2_5,
    "gpt-image-2.5-flare": _GPT_IMAGE_2_5,
    "gpt-image-2.5-flare-2026-09-08": _GPT_IMAGE_2_5,
    "gpt-image-2.6-sunburst": _GPT_IMAGE_2_6,
    "gpt-image-2.6-flare": _GPT_IMAGE_2_6,
}
