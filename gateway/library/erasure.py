"""Erasure of the images, prompts and requests of deleted tenants and users.

A call under way when its owner is deleted still settles and may store images afterwards, so each
run covers every owner deleted since some days before the last one.
"""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import Select, delete, func, or_, select, text, tuple_, union, update

from gateway.db import sweeps
from gateway.db.engine import Database, OperatorSession
from gateway.db.tables import DataKeyRow, ImageRow, TenantRow, TenantUserRow
from gateway.request_log.retention import forget_deleted
from gateway.tenancy.erasure import SWEEP

BATCH = 2_000
LOOK_BACK = timedelta(days=7)
"""Longer than any call, and than an image stays in the spool."""
EVER = datetime(1970, 1, 1, tzinfo=UTC)


async def erase(database: Database) -> int:
    """Expire the images of deleted tenants and users and blank their prompts; return the number.

    The sweep of expired images then deletes the files.
    """
    total, began = 0, datetime.now(UTC)
    async with database.operator() as session:
        last = await sweeps.compared_to(session, SWEEP)
    since = EVER if last is None else min(last, began) - LOOK_BACK
    while True:
        async with database.operator() as session:
            count = await _erase_images(session, since)
            await _erase_answers(session, since)
            await _shred_again(session, since)
            await forget_deleted(session, since=since)
            if count < BATCH:
                await sweeps.note_compared(session, SWEEP, began)
                return total + count
        total += count


async def _erase_images(session: OperatorSession, since: datetime) -> int:
    users = select(TenantUserRow.tenant_id, TenantUserRow.id).where(
        TenantUserRow.deleted_at > since
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
        image.where(ImageRow.tenant_id.in_(_deleted_tenants(since))),
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


async def _shred_again(session: OperatorSession, since: datetime) -> None:
    """Destroy data keys again: a call under way may have created one to spool its images."""
    await session.execute(
        delete(DataKeyRow)
        .where(DataKeyRow.tenant_id.in_(_deleted_tenants(since)))
        .execution_options(synchronize_session=False)
    )


def _deleted_tenants(since: datetime) -> Select[UUID]:
    return select(TenantRow.id).where(TenantRow.deleted_at > since)


async def _erase_answers(session: OperatorSession, since: datetime) -> None:
    """Blank the revised prompts in the answers kept for repeated requests."""
    await session.execute(
        text(
            "SELECT erase_answers(id, NULL) FROM tenant"
            " WHERE deleted_at > :since UNION ALL"
            " SELECT erase_answers(tenant_id, id) FROM tenant_user WHERE deleted_at > :since"
        ),
        {"since": since},
    )
