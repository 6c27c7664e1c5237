"""The providers of vendors, by name: each entry opens a package of this folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.catalog.declared import Host, Kind
from gateway.net.downloads import Downloads
from gateway.providers.base import CatalogueVendor, HostProvider
from gateway.providers.connections import ProviderConnections
from gateway.providers.gemini.images import GeminiImages
from gateway.providers.kserve.images import KServeImages
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

    def connections(self, ca_file: Path | None = None) -> ProviderConnections:
        """Open the pool of the provider's connections."""
        return ProviderConnections(
            base_url=self.base_url,
            proxy=self.proxy,
            connect_timeout_seconds=self.connect_timeout_seconds,
            max_connections=self.max_connections,
            ca_file=ca_file,
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


def open_kserve(host: Host, options: ProviderOptions) -> KServeImages:
    """Open a host of an operator's own that serves diffusers on KServe."""
    return KServeImages(
        options.connections(host.ca_file),
        host,
        read_timeout_seconds=options.read_timeout_seconds,
        max_answer_bytes=options.max_answer_bytes,
    )


def open_compatible(host: Host, options: ProviderOptions) -> OpenAIImages:
    """Open a host of an operator's own that speaks OpenAI's API."""
    return OpenAIImages(
        options.connections(host.ca_file),
        base_url=options.base_url,
        read_timeout_seconds=options.read_timeout_seconds,
        max_answer_bytes=options.max_answer_bytes,
        downloads=options.downloads(),
        host=host,
    )


HOST_OPENERS: Mapping[Kind, Callable[[Host, ProviderOptions], HostProvider]] = {
    "kserve": open_kserve,
    "openai-compatible": open_compatible,
}
"""The kinds of hosts that a models file declares."""
OPENERS: Mapping[str, Callable[[ProviderOptions], CatalogueVendor]] = {
    "openai": open_openai,
    "gemini": open_gemini,
}
