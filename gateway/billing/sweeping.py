"""One sweep of the money: what time does to reservations whose outcome nobody has told."""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.billing import estimates, ledger
from gateway.db.engine import Database
from gateway.image_models import Model

BATCH = 200


@dataclass(frozen=True, slots=True)
class Swept:
    """How many reservations became unknown, and how many estimates."""

    expired: int
    estimated: int


async def sweep(
    database: Database, models: Mapping[str, Model], *, estimate_after_seconds: int
) -> Swept:
    """Mark late reservations as unknown, and post the estimate of those that stayed so.

    At most `BATCH` of each. Several sweepers at once do no harm.
    """
    expired = await ledger.expire_late(database, limit=BATCH)
    estimated = await estimates.estimate_unknown(
        database, models, after_seconds=estimate_after_seconds, limit=BATCH
    )
    return Swept(expired, estimated)
