"""The providers of vendors, by name: each entry opens a package of this folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.net.downloads import Downloads
from gateway.providers.base import VendorProvider
from gateway.providers.connections import ProviderConnections
from gateway.providers.gemini.images import GeminiImages
from gateway.providers.openai.images import OpenAIImages


@dataclass(frozen=True, slots=True)
class ProviderOptions:
    """Everything that a provider is opened with, in a running event loop."""

    base_url: str
    proxy: str | None
    connect_timeout_seconds: float
    read_timeout_seconds: float | None
    max_connections: int
    max_answer_bytes: int
    downloads: Callable[[], Downloads]

    def connections(self) -> ProviderConnections:
        """Open the pool of the provider's connections."""
        return ProviderConnections(
            base_url=self.base_url,
            proxy=self.proxy,
            connect_timeout_seconds=self.connect_timeout_seconds,
            max_connections=self.max_connections,
        )


def open_openai(options: ProviderOptions) -> OpenAIImages:
    """Open OpenAI's API, or a host that speaks it."""
    return OpenAIImages(
        options.connections(),
        base_url=options.base_url,
        read_timeout_seconds=options.read_timeout_seconds,
        max_answer_bytes=options.max_answer_bytes,
        downloads=options.downloads(),
    )


def open_gemini(options: ProviderOptions) -> GeminiImages:
    """Open Google's Gemini API."""
    return GeminiImages(
        options.connections(),
        base_url=options.base_url,
        read_timeout_seconds=options.read_timeout_seconds,
        max_answer_bytes=options.max_answer_bytes,
    )


OPENERS: Mapping[str, Callable[[ProviderOptions], VendorProvider]] = {
    "openai": open_openai,
    "gemini": open_gemini,
}
