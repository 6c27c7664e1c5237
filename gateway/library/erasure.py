"""Erasure of the images, prompts and requests of deleted tenants and users.

A call under way when its owner is deleted still settles and may store images afterwards, so each
run covers every owner deleted since some days before the last one.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import Select, delete, func, or_, select, tuple_, union, update

from gateway.db import sweeps
from gateway.db.engine import Database, OperatorSession
from gateway.db.tables import DataKeyRow, ImageRow, TenantRow, TenantUserRow
from gateway.tenancy.erasure import SWEEP

BATCH = 2_000
LOOK_BACK = timedelta(days=7)
"""Longer than any call, and than an image stays in the spool."""


async def erase(database: Database) -> int:
    """Expire the images of deleted tenants and users and blank their prompts; return the number.

    The sweep of expired images then deletes the files.
    """
    total, began = 0, datetime.now(UTC)
    async with database.operator() as session:
        last = await sweeps.compared_to(session, SWEEP)
        since = min(last or began, began) - LOOK_BACK
        owners = await _deleted_owners(session, since)
    while True:
        async with database.operator() as session:
            count = await _erase_images(session, since)
            await _shred_again(session, since)
        total += count
        if count < BATCH:
            break
    for tenant_id, user_id in owners:  # each within the time of a statement
        async with database.operator() as session:
            await session.execute(select(func.erase_answers(tenant_id, user_id)))
            if user_id is None:
                await session.execute(select(func.forget_requests(tenant_id)))
    async with database.operator() as session:
        await sweeps.note_compared(session, SWEEP, began)
    return total


async def _deleted_owners(
    session: OperatorSession, since: datetime
) -> Sequence[tuple[UUID, UUID | None]]:
    """List deleted tenants, without a user, and deleted users of living ones."""
    tenants = (await session.scalars(_deleted_tenants(since))).all()
    users = await session.execute(
        select(TenantUserRow.tenant_id, TenantUserRow.id).where(
            TenantUserRow.deleted_at > since,
            TenantUserRow.tenant_id.not_in(_deleted_tenants(since)),
        )
    )
    return [*((one, None) for one in tenants), *((row.tenant_id, row.id) for row in users)]


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
