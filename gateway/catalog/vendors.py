"""The vendors whose keys tenants may store, by the name that models and credentials use."""

from collections.abc import Mapping
from dataclasses import dataclass

LEGACY = "legacy"
"""The provider of retired models that an operator's own host still serves."""
SANDBOX = "sandbox"
"""The provider of test keys."""


@dataclass(frozen=True, slots=True)
class Vendor:
    """A vendor of models; `key_setting` is the variable of the house credential."""

    title: str
    key_setting: str


VENDORS: Mapping[str, Vendor] = {
    "openai": Vendor("OpenAI", "OPENAI_API_KEY"),
    "gemini": Vendor("Google Gemini", "GEMINI_API_KEY"),
}
