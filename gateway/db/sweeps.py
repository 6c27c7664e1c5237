"""Periodic work that one worker at a time does for all."""

from sqlalchemy import func, update

from gateway.db.engine import OperatorSession
from gateway.db.tables import SweepRow


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
