"""Months of calls that are old enough to be archived."""

import random
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from gateway.billing import ledger
from tests.harness import Served
from tests.usage_helpers import Owner, calls_of, id_at, write_calls

JANUARY, FEBRUARY, MARCH = (date(2025, month, 1) for month in (1, 2, 3))
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


async def old_calls(
    served: Served, owner: Owner, moments: Sequence[datetime], chance: random.Random
) -> list[UUID]:
    """Write calls whose ids were made at about these moments, by clocks that are hours off."""
    calls = calls_of(owner, moments, chance)
    for call, moment in zip(calls, moments, strict=True):
        call["id"] = str(id_at(moment + chance.choice([0, 0, -1, 1]) * timedelta(hours=20)))
    await write_calls(served, owner, calls)
    return [UUID(call["id"]) for call in calls]


async def months_of(served: Served, *months: date) -> None:
    for month in (date(2024, 12, 1), *months, date(2025, 4, 1)):
        await served.owner_sql("SELECT add_month(CAST(:month AS date))", month=month)


async def check_books(served: Served) -> None:
    """Check the whole ledger, as the gateway does once a week; months are archived after it."""
    found = await ledger.check_all(
        served.gateway.database, progress=lambda _what: None, remember=True
    )
    assert found == []
