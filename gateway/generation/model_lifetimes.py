"""Shutdown dates of models: the catalogue's, updated from the vendor's announcements."""

from collections.abc import Mapping
from datetime import date
from typing import Protocol

import structlog

from gateway.catalog.loading import Catalog
from gateway.domain import SecretText
from gateway.providers.base import ProviderFailure

log = structlog.get_logger(__name__)


class DateSource(Protocol):
    """A vendor that announces the shutdown dates of its models."""

    async def shutdown_dates(self, credential: SecretText) -> Mapping[str, date]:
        """Return the announced shutdown dates by model.

        Raises:
            ProviderFailure: no readable answer.
        """
        ...


class Lifetimes:
    """Asks the vendor with the house credential; without one the catalogue's dates apply."""

    def __init__(self, catalog: Catalog, source: DateSource, house: SecretText | None) -> None:
        self._catalog = catalog
        self._source = source
        self._house = house

    async def refresh(self) -> bool:
        """Apply the dates announced today; a failed request changes nothing.

        Returns True if the next refresh is due in a day, False if it should be retried sooner.
        """
        if self._house is None:
            return True
        try:
            dates = await self._source.shutdown_dates(self._house)
        except ProviderFailure as failure:
            log.warning("shutdown_dates_unknown", reason=failure.reason)
            return False
        for model in self._catalog.learn_shutdown_dates(dates):
            log.warning("shutdown_date_announced", model=model, on=dates[model].isoformat())
        return True
