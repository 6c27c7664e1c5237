"""One sweep of the reservations whose outcome was never reported."""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.billing import estimates, ledger
from gateway.db.engine import Database
from gateway.image_models import Model

BATCH = 200


@dataclass(frozen=True, slots=True)
class SweptReservations:
    """The numbers of reservations that became unknown and of estimates that were posted."""

    expired: int
    estimated: int


async def sweep(
    database: Database, models: Mapping[str, Model], *, estimate_after_seconds: int
) -> SweptReservations:
    """Mark late reservations as unknown, and post the estimate of those that stayed unknown.

    At most `BATCH` of each. Several sweepers at once do no harm.
    """
    expired = await ledger.expire_late(database, limit=BATCH)
    estimated = await estimates.estimate_unknown(
        database, models, after_seconds=estimate_after_seconds, limit=BATCH
    )
    return SweptReservations(expired, estimated)
