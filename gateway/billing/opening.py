"""Opens the writers of money of one worker: its reservations, and its journal of sent calls."""

from contextlib import AsyncExitStack

from gateway.billing.journal import Journal, open_journal
from gateway.billing.reservations import Reservations
from gateway.config import Settings
from gateway.db.engine import Database
from gateway.domain import new_id


def open_reservations(
    stack: AsyncExitStack, settings: Settings, database: Database
) -> tuple[Reservations, Journal | None]:
    """Both under the id that stands on the worker's reservations; closed by the stack."""
    instance = new_id()
    journal = open_journal(settings.resolved_journal_dir, instance)
    if journal is not None:
        stack.callback(journal.close)
    reservations = Reservations(
        database,
        instance=instance,
        max_batch=settings.group_commit_max_batch,
        admission_timeout_ms=settings.admission_timeout_ms,
    )
    stack.push_async_callback(reservations.close)
    return reservations, journal
