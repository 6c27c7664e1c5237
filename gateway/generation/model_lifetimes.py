"""Lifetimes of models: the catalogue's shutdown dates and models, and what vendors say of them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from gateway.catalog.loading import Catalog
from gateway.domain import SecretText
from gateway.providers.base import CatalogueVendor, ProviderFailure, Reason, VendorProvider

LIST_SECONDS = 5.0
"""The longest wait for a vendor's list: a command or a page waits for it."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ListedModels:
    """A vendor's living models in the catalogue, and those that its own list lacks.

    `failure`: the reason why there is no list; None if there is one.
    """

    models: tuple[str, ...]
    missing: tuple[str, ...]
    failure: Reason | None = None


class Lifetimes:
    """Asks each vendor with its house credential; without one the catalogue's dates apply."""

    def __init__(
        self,
        catalog: Catalog,
        vendors: Mapping[str, VendorProvider],
        house: Mapping[str, SecretText],
        *,
        listing: Mapping[str, CatalogueVendor],
    ) -> None:
        self._catalog = catalog
        self._house = house
        self._listing = listing
        self._sources = [(vendors[name], key) for name, key in house.items() if name in vendors]

    async def refresh(self) -> bool:
        """Apply the dates announced today; a failed request changes nothing.

        Returns True if the next refresh is due in a day, False if it should be retried sooner.
        """
        is_known = True
        for vendor, credential in self._sources:
            try:
                dates = await vendor.shutdown_dates(credential)
            except ProviderFailure as failure:
                log.warning("shutdown_dates_unknown", reason=failure.reason)
                is_known = False
                continue
            for model in self._catalog.learn_shutdown_dates(dates):
                log.warning("shutdown_date_announced", model=model, on=dates[model].isoformat())
        return is_known

    async def compare(self, vendor: str) -> ListedModels | None:
        """Compare a vendor's own list of models with the catalogue; None without a house key."""
        credential = self._house.get(vendor)
        if credential is None:
            return None
        try:
            async with asyncio.timeout(LIST_SECONDS):
                listed = await self._listing[vendor].listed_models(credential)
        except ProviderFailure as failure:
            return ListedModels((), (), failure.reason)
        except TimeoutError:
            return ListedModels((), (), Reason.UNREACHABLE)
        living = self._catalog.living(vendor)
        missing = tuple(model.id for model in living if model.id not in listed)
        return ListedModels(tuple(model.id for model in living), missing)
