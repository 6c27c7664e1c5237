"""The images of one generation, those that are gone included, without their prompts."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select

from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.tables import ImageRow


@dataclass(frozen=True, slots=True)
class StoredResult:
    """One image that a generation made; `deleted_at` is set once its file is gone."""

    id: str
    width: int | None
    height: int | None
    media_type: str
    size_bytes: int
    provenance: str
    created_at: datetime
    expires_at: datetime
    deleted_at: datetime | None


async def list_made(
    session: TenantSession | OperatorSession, tenant_id: UUID, generation_id: UUID
) -> list[StoredResult]:
    """List the images of a generation, in the order in which they were stored."""
    rows = await session.scalars(
        select(ImageRow)
        .where(ImageRow.tenant_id == tenant_id, ImageRow.reservation_id == generation_id)
        .order_by(ImageRow.created_at, ImageRow.id)
    )
    return [
        StoredResult(
            id=row.id,
            width=row.width,
            height=row.height,
            media_type=row.media_type,
            size_bytes=row.size_bytes,
            provenance=row.provenance,
            created_at=row.created_at,
            expires_at=row.expires_at,
            deleted_at=row.deleted_at,
        )
        for row in rows
    ]
