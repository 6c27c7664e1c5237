"""Opening of a worker's writers of money: its reservations and its journal."""

from contextlib import AsyncExitStack

from gateway.billing.journal import Journal, open_journal
from gateway.billing.reservations import Reservations
from gateway.config import Settings
from gateway.db.engine import Database
from gateway.db.identity import read_identity
from gateway.domain import new_id


async def open_reservations(
    stack: AsyncExitStack, settings: Settings, database: Database
) -> tuple[Reservations, Journal | None]:
    """Open both under the worker id recorded on its reservations; the stack closes them.

    Raises:
        DatabaseUnavailable: Postgres is away.
    """
    instance = new_id()
    async with database.operator() as session:
        identity = await read_identity(session)
    journal = open_journal(settings.resolved_journal_dir, instance, identity)
    reservations = Reservations(
        database,
        instance=instance,
        max_batch=settings.group_commit_max_batch,
        admission_timeout_ms=settings.admission_timeout_ms,
    )
    stack.push_async_callback(_close, reservations, journal)
    return reservations, journal


async def _close(reservations: Reservations, journal: Journal | None) -> None:
    is_undone = await reservations.close()
    if journal is not None:
        if not is_undone:
            journal.keep()
        journal.close()
