"""The usual start of searches in logs by columns without an index."""

from datetime import UTC, datetime, timedelta

SEARCHED = timedelta(hours=24)
"""The time that a search without a start goes back from its end."""
SEARCHED_NOTE = (
    "Without a start or a tenant, these filters search only the 24 hours before the end. Choose "
    "an earlier start to search further back."
)


def usual_start(end: datetime | None) -> datetime:
    """Return the start of a search that names none."""
    return (end or datetime.now(UTC)) - SEARCHED
