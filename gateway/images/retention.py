"""Images past their time: which they are, and that they are gone."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, update

from gateway.db.engine import OperatorSession
from gateway.db.tables import ImageRow


@dataclass(frozen=True, slots=True)
class ExpiredImage:
    """An image whose file is to be deleted."""

    id: str
    path: str


async def expired_images(session: OperatorSession, *, limit: int) -> list[ExpiredImage]:
    """Images past their expiry whose file may still be there, oldest first."""
    rows = await session.execute(
        select(ImageRow.id, ImageRow.path)
        .where(ImageRow.deleted_at.is_(None), ImageRow.expires_at < func.now())
        .order_by(ImageRow.expires_at)
        .limit(limit)
    )
    return [ExpiredImage(row.id, row.path) for row in rows]


async def mark_deleted(session: OperatorSession, images: Sequence[ExpiredImage]) -> None:
    """Write down that the files are gone."""
    await session.execute(
        update(ImageRow)
        .where(ImageRow.id.in_([image.id for image in images]))
        .values(deleted_at=func.now())
    )
