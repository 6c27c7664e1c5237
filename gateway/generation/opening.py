"""Open the providers of images: vendors, the operator's own hosts, and the sandbox."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import date
from typing import BinaryIO

from gateway.catalog.declared import Host
from gateway.catalog.loading import Catalog
from gateway.catalog.vendors import LEGACY
from gateway.config import Settings
from gateway.config.proxies import proxy_for
from gateway.db.engine import Database
from gateway.domain import SecretText
from gateway.generation.hosts import Hosts
from gateway.generation.model_lifetimes import Lifetimes
from gateway.library.opening import open_sketcher
from gateway.media.decoder import Decoder, DecoderBusy, DecoderFailed, UnusableImage
from gateway.media.temporary_files import new_spool
from gateway.net.downloads import Downloads, origin_of
from gateway.provider_answers import Outcome
from gateway.providers.base import (
    CatalogueVendor,
    ImageProvider,
    ProviderFailure,
    Reason,
    VendorProvider,
)
from gateway.providers.opening import HOST_OPENERS, OPENERS, ProviderOptions, open_compatible
from gateway.providers.sandbox.provider import Drawer, Drawing, Sandbox
from gateway.request_record import current

MAX_DOWNLOAD_BYTES = 52_428_800
"""The largest input image that any model accepts."""


@dataclass(frozen=True, slots=True)
class OpenedProviders:
    """The opened providers by name; `house`: the operator's credentials.

    `vendors` have credentials to test: they are the catalogue's, and the operator's own hosts.
    """

    providers: Mapping[str, ImageProvider]
    vendors: Mapping[str, VendorProvider]
    house: Mapping[str, SecretText]
    hosts: Hosts
    lifetimes: Lifetimes


def open_providers(
    stack: AsyncExitStack,
    settings: Settings,
    catalog: Catalog,
    database: Database,
    forget_prices: Callable[[], None],
    *,
    today: Callable[[], date],
) -> OpenedProviders:
    """Open every provider; `stack` closes them.

    Raises:
        ConfigurationError: a host's credential or certificates are missing.
    """
    listing, house = _vendors(settings), _house_credentials(settings)
    vendors: dict[str, VendorProvider] = {**listing}
    providers = _providers(stack, settings, vendors)
    hosts = Hosts(
        settings,
        catalog,
        database,
        open_host=lambda host: HOST_OPENERS[host.kind](host, _options(settings, host.base_url)),
        vendors=vendors,
        providers=providers,
        house=house,
        forget_prices=forget_prices,
        today=today,
    )
    stack.push_async_callback(hosts.close)
    hosts.open()
    lifetimes = Lifetimes(catalog, vendors, house, listing=listing)
    return OpenedProviders(providers, vendors, house, hosts, lifetimes)


def _providers(
    stack: AsyncExitStack,
    settings: Settings,
    vendors: Mapping[str, VendorProvider],
) -> dict[str, ImageProvider]:
    sketcher = open_sketcher(settings)
    stack.push_async_callback(sketcher.close)
    providers: dict[str, ImageProvider] = {**vendors, "sandbox": Sandbox(_drawer(sketcher))}
    if settings.legacy_base_url is not None:
        options = _options(settings, settings.legacy_base_url)
        host = Host(LEGACY, "openai-compatible", settings.legacy_base_url)
        providers[LEGACY] = open_compatible(host, options)
    # Read when it is closed: hosts are opened later, and replaced.
    stack.push_async_callback(_close_all, providers)
    return providers


async def _close_all(providers: Mapping[str, ImageProvider]) -> None:
    for provider in providers.values():
        await provider.close()


def _vendors(settings: Settings) -> dict[str, CatalogueVendor]:
    addresses = settings.provider_addresses
    return {name: opener(_options(settings, addresses[name])) for name, opener in OPENERS.items()}


def _options(settings: Settings, base_url: str) -> ProviderOptions:
    def open_downloads() -> Downloads:
        return Downloads(
            max_bytes=MAX_DOWNLOAD_BYTES,
            total_seconds=settings.download_seconds,
            connect_seconds=settings.provider_connect_timeout_seconds,
            trusted_origins=frozenset({origin_of(base_url)}),
        )

    return ProviderOptions(
        base_url=base_url,
        proxy=proxy_for(base_url),
        connect_timeout_seconds=settings.provider_connect_timeout_seconds,
        read_timeout_seconds=settings.provider_read_timeout_seconds,
        max_connections=settings.provider_max_connections,
        max_answer_bytes=settings.provider_max_answer_bytes,
        downloads=open_downloads,
    )


def _house_credentials(settings: Settings) -> dict[str, SecretText]:
    house = {
        name: SecretText(key.get_secret_value().strip())
        for name, key in settings.house_keys.items()
    }
    if settings.legacy_base_url is not None:
        key = settings.legacy_api_key
        # A self-hosted endpoint often needs no key; it then ignores this one.
        house[LEGACY] = SecretText("none" if key is None else key.get_secret_value().strip())
    return house


def _drawer(sketcher: Decoder) -> Drawer:
    async def draw(drawing: Drawing, inputs: Sequence[BinaryIO]) -> bytes:
        with new_spool() as target:
            try:
                # Tenants take turns, so that many large drawings of one delay no other's.
                owner = current().tenant_id
                await sketcher.draw(asdict(drawing), inputs, target, owner=owner)
            except (UnusableImage, DecoderBusy, DecoderFailed) as error:
                raise ProviderFailure(
                    Outcome.NOT_SENT, Reason.UNREACHABLE, "The sandbox is busy."
                ) from error
            return target.read()

    return draw
