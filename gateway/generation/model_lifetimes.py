"""Shutdown dates of models: the catalogue's, updated from the vendors' announcements."""

from collections.abc import Mapping

import structlog

from gateway.catalog.loading import Catalog
from gateway.domain import SecretText
from gateway.providers.base import ProviderFailure, VendorProvider

log = structlog.get_logger(__name__)


class Lifetimes:
    """Asks each vendor with its house credential; without one the catalogue's dates apply."""

    def __init__(
        self,
        catalog: Catalog,
        vendors: Mapping[str, VendorProvider],
        house: Mapping[str, SecretText],
    ) -> None:
        self._catalog = catalog
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
