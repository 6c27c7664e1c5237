"""Retention of images: expiry, storage caps of tenants, and deletion of files.

`expires_at` in the past hides an image everywhere; its files are deleted soon after, then
`deleted_at` is set. A crash in between leaves a row that is swept again, never an orphaned file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import case, delete, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from gateway.db.engine import Database, OperatorSession, TenantSession
from gateway.db.spool_table import SpooledImageRow
from gateway.db.tables import ImageCleanupRow, ImageRow
from gateway.domain import TenantSettings
from gateway.library.storage import ImageStore, thumbnail_path

TENANTS_AT_ONCE = 500
_BEYOND_CAPS = "SELECT beyond_id, max_bytes FROM tenants_beyond_caps(:after, :most)"


@dataclass(frozen=True, slots=True)
class ExpiredImage:
    """An image whose files are to be deleted."""

    id: str
    path: str
    expires_at: datetime


def retention_seconds(tenant: TenantSettings, *, default_seconds: int) -> int:
    """Return the retention of an image made now, in seconds."""
    return tenant.image_retention_seconds or default_seconds


def link_expiry(now: int, *, link_seconds: int, image_expires_at: int) -> int:
    """Return the expiry of a link made now (Unix seconds): never later than its image's."""
    return min(now + link_seconds, image_expires_at)


async def expired_images(
    session: OperatorSession, *, limit: int, after: ExpiredImage | None = None
) -> list[ExpiredImage]:
    """Return expired images whose files may still exist, oldest first, starting behind `after`."""
    wanted = select(ImageRow.id, ImageRow.path, ImageRow.expires_at).where(
        ImageRow.deleted_at.is_(None), ImageRow.expires_at <= func.now()
    )
    if after is not None:
        behind = tuple_(ImageRow.expires_at, ImageRow.id) > tuple_(after.expires_at, after.id)
        wanted = wanted.where(behind)
    rows = await session.execute(wanted.order_by(ImageRow.expires_at, ImageRow.id).limit(limit))
    return [ExpiredImage(row.id, row.path, row.expires_at) for row in rows]


async def delete_files(store: ImageStore, path: str) -> None:
    """Delete an image and its thumbnail.

    In this order: a task that stores a thumbnail checks afterwards that its image still exists.

    Raises:
        StorageFailed: the store does not respond.
    """
    await store.delete(path)
    await store.delete(thumbnail_path(path))


async def mark_deleted(session: OperatorSession | TenantSession, image_ids: Sequence[str]) -> None:
    """Mark images as deleted and blank their prompts."""
    await forget_spooled(session, image_ids)
    await session.execute(
        update(ImageRow)
        .where(ImageRow.id.in_(image_ids), ImageRow.deleted_at.is_(None))
        .values(
            deleted_at=func.now(),
            expires_at=func.least(ImageRow.expires_at, func.now()),
            prompt=None,
            prompt_hash=None,
        )
    )


async def forget_spooled(
    session: OperatorSession | TenantSession, image_ids: Sequence[str]
) -> None:
    """Remove these images from the spool."""
    await session.execute(
        delete(SpooledImageRow)
        .where(SpooledImageRow.image_id.in_(image_ids))
        .execution_options(synchronize_session=False)
    )


async def mark_cleaned(
    session: OperatorSession, image_ids: Sequence[str], *, cleaned_at: datetime
) -> None:
    """Mark images as deleted, as `mark_deleted` does, and count them for their owners.

    `cleaned_at` identifies the clean-up: the counts of its batches are added.
    """
    owners = await session.execute(
        select(ImageRow.tenant_id, ImageRow.livemode, ImageRow.user_id, func.count())
        .where(ImageRow.id.in_(image_ids), ImageRow.deleted_at.is_(None))
        .group_by(ImageRow.tenant_id, ImageRow.livemode, ImageRow.user_id)
    )
    rows = [
        dict(zip(("tenant_id", "livemode", "user_id", "images"), owner, strict=True))
        | {"cleaned_at": cleaned_at}
        for owner in owners
    ]
    await mark_deleted(session, image_ids)
    if not rows:
        return
    # In a fixed order, so that two sweepers cannot deadlock.
    rows.sort(key=lambda row: (row["tenant_id"], row["livemode"], str(row["user_id"])))
    added = insert(ImageCleanupRow).values(rows)
    before = case(
        (ImageCleanupRow.cleaned_at == added.excluded.cleaned_at, ImageCleanupRow.images), else_=0
    )
    await session.execute(
        added.on_conflict_do_update(
            constraint="image_cleanup_owner",
            set_={
                "images": before + added.excluded.images,
                "cleaned_at": added.excluded.cleaned_at,
            },
        )
    )


async def expire_at_once(session: TenantSession, tenant_id: UUID, image_ids: Sequence[str]) -> None:
    """Expire images now; the next sweep deletes their files, as far as there are any."""
    await session.execute(
        update(ImageRow)
        .where(ImageRow.tenant_id == tenant_id, ImageRow.id.in_(image_ids))
        .values(expires_at=func.now())
    )


async def expire_beyond_caps(database: Database) -> int:
    """Expire the oldest images of tenants above their storage cap; return the number.

    Live and test images count together, thumbnails not at all. Which tenants are above their cap
    is known from counters; only their images are read.
    """
    count, last = 0, UUID(int=0)
    while True:
        rows = await database.call(_BEYOND_CAPS, {"after": last, "most": TENANTS_AT_ONCE})
        if not rows:
            return count
        last = rows[-1].beyond_id
        if over := [(row.beyond_id, row.max_bytes) for row in rows[:-1]]:
            async with database.operator() as session:
                count += await _expire_beyond(session, over)


async def _expire_beyond(session: OperatorSession, over: Sequence[tuple[UUID, int]]) -> int:
    """Expire the oldest images of these tenants, each with its cap in bytes."""
    living = (ImageRow.deleted_at.is_(None), ImageRow.expires_at > func.now())
    count = 0
    for tenant_id, max_bytes in over:
        up_to_here = func.sum(ImageRow.size_bytes).over(
            order_by=(ImageRow.created_at.desc(), ImageRow.id.desc())
        )
        newest_first = (
            select(ImageRow.id, up_to_here.label("bytes"))
            .where(ImageRow.tenant_id == tenant_id, *living)
            .subquery()
        )
        beyond = select(newest_first.c.id).where(newest_first.c.bytes > max_bytes)
        expired = await session.scalars(
            update(ImageRow)
            .where(ImageRow.id.in_(beyond))
            .values(expires_at=func.now())
            .returning(ImageRow.id)
            .execution_options(synchronize_session=False)
        )
        count += len(expired.all())
    return count
