"""Periodic work that one worker at a time does for all."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, update

from gateway.db.engine import OperatorSession
from gateway.db.tables import SweepRow


@dataclass(frozen=True, slots=True)
class Sweep:
    """Periodic work. `due_at`: its next time; one that is claimed is due at the claim's end.

    `compared_to`, `whole_at`: as in `SweepRow`.
    """

    name: str
    due_at: datetime
    compared_to: datetime | None
    whole_at: datetime | None


async def list_all(session: OperatorSession) -> list[Sweep]:
    """List all periodic work by name."""
    rows = await session.scalars(select(SweepRow).order_by(SweepRow.name))
    return [Sweep(row.name, row.due_at, row.compared_to, row.whole_at) for row in rows]


async def claim(session: OperatorSession, name: str, *, seconds: float) -> bool:
    """Claim the work if it is due, for `seconds`; return True if this worker has it.

    No lock is held: if the worker dies, another one claims the work after that time.
    """
    taken = await session.scalar(
        update(SweepRow)
        .where(SweepRow.name == name, SweepRow.due_at <= func.now())
        .values(due_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds))
        .returning(SweepRow.name)
        .execution_options(synchronize_session=False)
    )
    return taken is not None


async def put_off(session: OperatorSession, name: str, *, seconds: float) -> None:
    """Postpone the work by `seconds`, regardless of earlier claims."""
    await session.execute(
        update(SweepRow)
        .where(SweepRow.name == name)
        .values(due_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds))
        .execution_options(synchronize_session=False)
    )


async def compared_to(session: OperatorSession, name: str) -> datetime | None:
    """Return the time up to which the work is done; None if it has never been."""
    found: datetime | None = await session.scalar(
        select(SweepRow.compared_to).where(SweepRow.name == name)
    )
    return found


async def note_compared(session: OperatorSession, name: str, to: datetime) -> None:
    """Note the time up to which the work is done."""
    await session.execute(
        update(SweepRow)
        .where(SweepRow.name == name)
        .values(compared_to=to)
        .execution_options(synchronize_session=False)
    )
