"""The move of a reservation to another model, after a call that was surely not charged."""

from uuid import UUID

import orjson

from gateway.db.engine import Database, answered_within
from gateway.domain import Quote

_REROUTE = (
    "SELECT reroute_reservation(:tenant_id, :id, :served_model, :provider, :credential, :price_id,"
    " :ttl_seconds, CAST(:terms AS jsonb)) AS is_moved"
)


class Rerouting:
    """Moves reservations, each in a commit of its own: it is rare, and nothing waits behind it."""

    def __init__(self, database: Database, *, timeout_ms: int) -> None:
        self._database = database
        self._timeout_ms = timeout_ms

    async def move(
        self,
        tenant_id: UUID,
        reservation_id: UUID,
        quote: Quote,
        *,
        served_model: str,
        provider: str,
        credential: str,
        ttl_seconds: int,
    ) -> bool:
        """Move a held reservation, durably; the quote must not be above its amount.

        Returns False if it is not held any more: then the other model must not be called.

        Raises:
            DatabaseUnavailable: no acknowledgement in time. It may be moved nevertheless.
        """
        async with answered_within(self._timeout_ms / 1000):
            rows = await self._database.call(
                _REROUTE,
                {
                    "tenant_id": tenant_id,
                    "id": reservation_id,
                    "served_model": served_model,
                    "provider": provider,
                    "credential": credential,
                    "price_id": quote.price.id,
                    "ttl_seconds": ttl_seconds,
                    "terms": orjson.dumps(quote.terms).decode(),
                },
            )
        return bool(rows[0].is_moved)
