"""How long models live: the catalogue's dates, kept true by what the vendor announces."""

from collections.abc import Mapping
from datetime import date
from typing import Protocol

import structlog

from gateway.catalog.loading import Catalog
from gateway.domain import SecretText
from gateway.providers.base import ProviderFailure

log = structlog.get_logger(__name__)


class DateSource(Protocol):
    """A vendor that says when its models end."""

    async def shutdown_dates(self, credential: SecretText) -> Mapping[str, date]:
        """Shutdown dates by model.

        Raises:
            ProviderFailure: it does not say.
        """
        ...


class Lifetimes:
    """Asks the vendor with the house credential; without one the catalogue's dates stand."""

    def __init__(self, catalog: Catalog, source: DateSource, house: SecretText | None) -> None:
        self._catalog = catalog
        self._source = source
        self._house = house

    async def refresh(self) -> bool:
        """Take over the dates announced today; an answer that does not come changes nothing.

        Returns whether there is nothing more to learn for a day.
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
