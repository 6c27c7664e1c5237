"""Erasure of the images, prompts and requests of deleted tenants and users.

A call under way when its owner is deleted still settles and may store images afterwards, so each
run covers every owner deleted in the last days.
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import Select, delete, func, or_, select, text, tuple_, union, update

from gateway.db.engine import Database, OperatorSession
from gateway.db.tables import DataKeyRow, ImageRow, TenantRow, TenantUserRow
from gateway.request_log.retention import forget_deleted

BATCH = 2_000
LOOK_BACK = timedelta(days=7)
"""Longer than any call, and than an image stays in the spool."""


async def erase(database: Database) -> int:
    """Expire the images of deleted tenants and users and blank their prompts; return the number.

    The sweep of expired images then deletes the files.
    """
    total = 0
    while True:
        async with database.operator() as session:
            count = await _erase_images(session)
            await _erase_answers(session)
            await _shred_again(session)
            await forget_deleted(session, within=LOOK_BACK)
        total += count
        if count < BATCH:
            return total


async def _erase_images(session: OperatorSession) -> int:
    users = select(TenantUserRow.tenant_id, TenantUserRow.id).where(
        TenantUserRow.deleted_at > func.now() - LOOK_BACK
    )
    remains = (
        ImageRow.deleted_at.is_(None),
        or_(
            ImageRow.expires_at > func.now(),
            ImageRow.prompt.is_not(None),
            ImageRow.prompt_hash.is_not(None),
        ),
    )
    image = select(ImageRow.tenant_id, ImageRow.id).where(*remains)
    of_user = tuple_(ImageRow.tenant_id, ImageRow.user_id)
    # Each has an index; of both in one condition, Postgres would read every image.
    remaining = union(
        image.where(ImageRow.tenant_id.in_(_deleted_tenants())),
        image.where(ImageRow.user_id.is_not(None), of_user.in_(users)),
    ).limit(BATCH)
    erased = await session.scalars(
        update(ImageRow)
        .where(tuple_(ImageRow.tenant_id, ImageRow.id).in_(remaining))
        .values(
            expires_at=func.least(ImageRow.expires_at, func.now()), prompt=None, prompt_hash=None
        )
        .returning(ImageRow.id)
        .execution_options(synchronize_session=False)
    )
    return len(erased.all())


async def _shred_again(session: OperatorSession) -> None:
    """Destroy data keys again: a call under way may have created one to spool its images."""
    await session.execute(
        delete(DataKeyRow)
        .where(DataKeyRow.tenant_id.in_(_deleted_tenants()))
        .execution_options(synchronize_session=False)
    )


def _deleted_tenants() -> Select[UUID]:
    return select(TenantRow.id).where(TenantRow.deleted_at > func.now() - LOOK_BACK)


async def _erase_answers(session: OperatorSession) -> None:
    """Blank the revised prompts in the answers kept for repeated requests."""
    await session.execute(
        text(
            "SELECT erase_answers(id, NULL) FROM tenant"
            " WHERE deleted_at > now() - CAST(:back AS interval)"
            " UNION ALL SELECT erase_answers(tenant_id, id) FROM tenant_user"
            " WHERE deleted_at > now() - CAST(:back AS interval)"
        ),
        {"back": LOOK_BACK},
    )
