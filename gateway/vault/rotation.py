"""Rotation of keys while the gateway serves: rewrapping by master keys, new data keys.

Every rotation works in small commits and skips what is done, so it can be stopped and run again.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import aliased

from gateway.db.engine import Database, OperatorSession
from gateway.db.key_tables import KeyRotationRow, SealedSecretRow
from gateway.db.spool_table import SpooledImageRow
from gateway.db.tables import CredentialRow, DataKeyRow, WebhookSecretRow
from gateway.domain import new_id
from gateway.vault.sealing import MasterKeys, Vault, seal, unseal

ROTATION_LOCK = 4_702_111_234_569
"""Advisory lock of a command that changes the master key file, or needs it to stay as it is."""
REWRAP_BATCH = 500
TENANT_BATCH = 100
SEAL_BATCH = 200
KEPT_SECONDS = 300.0
"""Retention of a replaced data key: a worker may still open a ciphertext that it read before."""


@dataclass(frozen=True, slots=True)
class ResealedBatch:
    """One batch of resealed secrets; the next batch starts after the id `last`.

    `unreadable`: ids of secrets that do not open. They and their data key are kept unchanged.
    """

    count: int
    unreadable: tuple[UUID, ...]
    last: UUID | None


@dataclass(frozen=True, slots=True)
class RotationResult:
    """The result of a rotation of data keys; `resumed` if it continued an earlier one."""

    tenants: int
    secrets: int
    unreadable: tuple[UUID, ...]
    resumed: bool


Resealer = Callable[[OperatorSession, Vault, UUID | None, int], Awaitable[ResealedBatch]]
"""A function that reseals one batch of secrets of one kind under the newest data keys."""


async def rotate_data_keys(
    database: Database, vault: Vault, resealers: Sequence[Resealer]
) -> RotationResult:
    """Give every tenant a new data key and reseal its secrets; resume a stopped rotation."""
    rotation_id, started_at, resumed = await _begin(database)
    tenants = secrets = 0
    while True:
        async with database.operator() as session:
            count = await _add_keys(session, vault, before=started_at)
        tenants += count
        if count == 0:
            break
    unreadable: list[UUID] = []
    for reseal in resealers:
        last: UUID | None = None
        while True:
            async with database.operator() as session:
                sealed = await reseal(session, vault, last, SEAL_BATCH)
            secrets += sealed.count
            unreadable += sealed.unreadable
            last = sealed.last
            if last is None:
                break
    async with database.operator() as session:
        await session.execute(
            update(KeyRotationRow)
            .where(KeyRotationRow.id == rotation_id)
            .values(finished_at=func.clock_timestamp())
        )
    return RotationResult(tenants, secrets, tuple(unreadable), resumed)


async def _begin(database: Database) -> tuple[UUID, datetime, bool]:
    async with database.operator() as session:
        unfinished = (
            await session.execute(
                select(KeyRotationRow.id, KeyRotationRow.started_at).where(
                    KeyRotationRow.finished_at.is_(None)
                )
            )
        ).first()
        if unfinished is not None:
            return unfinished.id, unfinished.started_at, True
        row = KeyRotationRow(id=new_id(), finished_at=None)
        session.add(row)
        await session.flush()
        await session.refresh(row)
        return row.id, row.started_at, False


async def _add_keys(session: OperatorSession, vault: Vault, *, before: datetime) -> int:
    """Give a new data key to a batch of tenants whose newest is older than `before`."""
    behind = await session.execute(
        select(DataKeyRow.tenant_id, func.max(DataKeyRow.version))
        .group_by(DataKeyRow.tenant_id)
        .having(func.max(DataKeyRow.created_at) < before)
        .limit(TENANT_BATCH)
    )
    tenants = behind.all()
    for tenant_id, version in tenants:
        await vault.add_data_key(session, tenant_id, version + 1)
    return len(tenants)


async def retire_data_keys(session: OperatorSession) -> int:
    """Remove replaced data keys that nothing is sealed with any more."""
    newer = aliased(DataKeyRow)
    is_replaced = (
        select(newer.version)
        .where(
            newer.tenant_id == DataKeyRow.tenant_id,
            newer.version > DataKeyRow.version,
            newer.created_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, KEPT_SECONDS),
        )
        .exists()
    )
    is_used = [
        select(table.tenant_id)
        .where(
            table.tenant_id == DataKeyRow.tenant_id, table.data_key_version == DataKeyRow.version
        )
        .exists()
        for table in (CredentialRow, WebhookSecretRow, SpooledImageRow)
    ]
    removed = await session.scalars(
        delete(DataKeyRow)
        .where(is_replaced, *(~used for used in is_used))
        .returning(DataKeyRow.version)
        .execution_options(synchronize_session=False)
    )
    return len(removed.all())


async def rewrap_all(database: Database, master_keys: MasterKeys) -> int:
    """Wrap every data key and gateway secret with the first master key; return their number.

    Works in small commits and skips what is done: it can be stopped and run again while the
    gateway serves.
    """
    done = 0
    while True:
        async with database.operator() as session:
            count = await _rewrap_batch(session, master_keys)
        done += count
        if count == 0:
            return done


async def _rewrap_batch(session: OperatorSession, master_keys: MasterKeys) -> int:
    new_id, new_key = master_keys.wrapping()
    secrets = await session.execute(
        select(SealedSecretRow.name, SealedSecretRow.sealed, SealedSecretRow.master_key_id)
        .where(SealedSecretRow.master_key_id != new_id)
        .with_for_update()
    )
    count = 0
    for name, sealed, old_id in secrets:
        place = ("sealed_secret", name)
        plain = unseal(master_keys.opening(old_id), sealed, *place)
        await session.execute(
            update(SealedSecretRow)
            .where(SealedSecretRow.name == name)
            .values(sealed=seal(new_key, plain, *place), master_key_id=new_id)
        )
        count += 1
    data_keys = await session.execute(
        select(
            DataKeyRow.tenant_id, DataKeyRow.version, DataKeyRow.wrapped, DataKeyRow.master_key_id
        )
        .where(DataKeyRow.master_key_id != new_id)
        .limit(REWRAP_BATCH)
        .with_for_update()
    )
    for tenant_id, version, wrapped, old_id in data_keys:
        plain = unseal(master_keys.opening(old_id), wrapped, "data_key", tenant_id, version)
        await session.execute(
            update(DataKeyRow)
            .where(DataKeyRow.tenant_id == tenant_id, DataKeyRow.version == version)
            .values(
                wrapped=seal(new_key, plain, "data_key", tenant_id, version), master_key_id=new_id
            )
        )
        count += 1
    return count


async def used_master_key_ids(database: Database) -> set[str]:
    """Return the ids of the master keys that still wrap a key or secret."""
    async with database.operator() as session:
        return await _used_ids(session)


async def _used_ids(session: OperatorSession) -> set[str]:
    secrets = await session.scalars(select(SealedSecretRow.master_key_id).distinct())
    data_keys = await session.scalars(select(DataKeyRow.master_key_id).distinct())
    return {*secrets, *data_keys}
