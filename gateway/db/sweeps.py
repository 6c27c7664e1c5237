"""Work that one worker does for all: whoever finds it due does it, and the others do not."""

from sqlalchemy import func, update

from gateway.db.engine import OperatorSession
from gateway.db.tables import SweepRow


async def claim(session: OperatorSession, name: str, *, seconds: float) -> bool:
    """Whether the work is due and now this worker's; it is due again after `seconds`.

    Nothing is locked meanwhile: a worker that dies at it is followed by another in due time.
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
    """Let the work be due after `seconds`, whatever was said before."""
    await session.execute(
        update(SweepRow)
        .where(SweepRow.name == name)
        .values(due_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds))
        .execution_options(synchronize_session=False)
    )
