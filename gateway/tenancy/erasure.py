"""Deletion of tenants and users: access ends, secrets are destroyed, names and prompts blanked.

Ledger, reservations and audit trail are kept: charges must stay explainable, and a call in flight
settles as usual. The sweeper deletes images in batches (`gateway/library/erasure.py`).
"""

from uuid import UUID

from sqlalchemy import ColumnElement, Text, case, cast, delete, exists, func, true, update
from sqlalchemy.orm import aliased

from gateway.db import sweeps
from gateway.db.audit import Action, record
from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.tables import (
    ApiKeyRow,
    CredentialRow,
    TenantRow,
    TenantUserRow,
    WebhookEndpointRow,
)
from gateway.tenancy import tenants, users
from gateway.tenancy.tenants import Tenant, unknown_tenant
from gateway.tenancy.users import User
from gateway.vault.sealing import shred

SWEEP = "erasures"
DELETED = "deleted"


async def delete_tenant(session: OperatorSession, tenant_id: UUID) -> Tenant:
    """Delete a tenant with its users permanently. Idempotent.

    Destroying the data key makes everything sealed with it unreadable, in backups too.

    Raises:
        NotFound: there is no such tenant.
    """
    # Reservations refer to this row: the lock must not block those of other tenants.
    row = await session.get(TenantRow, tenant_id, with_for_update={"key_share": True})
    if row is None:
        raise unknown_tenant(tenant_id)
    before = await tenants.get(session, tenant_id)
    await _revoke_keys(session, tenant_id, true())
    await session.execute(delete(CredentialRow).where(CredentialRow.tenant_id == tenant_id))
    # The foreign keys cascade to their secrets and deliveries.
    await session.execute(
        delete(WebhookEndpointRow).where(WebhookEndpointRow.tenant_id == tenant_id)
    )
    await shred(session, tenant_id)
    await _blank_users(session, tenant_id, true())
    if row.status != DELETED:
        row.status, row.name, row.deleted_at = DELETED, f"{DELETED}-{tenant_id}", func.now()
        await session.flush()
        await session.refresh(row)
    after = await tenants.get(session, tenant_id)
    await sweeps.put_off(session, SWEEP, seconds=0)
    await record(
        session,
        Action.TENANT_DELETED,
        tenant_id=tenant_id,
        object_id=tenant_id,
        before=tenants.shown(before),
        after=tenants.shown(after),
    )
    return after


async def delete_user(session: TenantSession, tenant_id: UUID, user_id: UUID) -> User:
    """Delete a user of a tenant permanently. Idempotent.

    Raises:
        NotFound: the tenant has no such user.
    """
    before = await users.get(session, tenant_id, user_id, for_change=True)
    await _revoke_keys(session, tenant_id, ApiKeyRow.user_id == user_id)
    await session.execute(
        delete(CredentialRow).where(
            CredentialRow.tenant_id == tenant_id, CredentialRow.user_id == user_id
        )
    )
    await _blank_users(session, tenant_id, TenantUserRow.id == user_id)
    after = await users.get(session, tenant_id, user_id)
    await sweeps.put_off(OperatorSession(session), SWEEP, seconds=0)
    await record(
        session,
        Action.USER_DELETED,
        tenant_id=tenant_id,
        object_id=user_id,
        before=users.shown(before),
        after=users.shown(after),
    )
    return after


async def _revoke_keys(
    session: TenantSession | OperatorSession, tenant_id: UUID, which: ColumnElement[bool]
) -> None:
    """Revoke keys of the tenant, and erase their names."""
    await session.execute(
        update(ApiKeyRow)
        .where(ApiKeyRow.tenant_id == tenant_id, which)
        .values(revoked_at=func.coalesce(ApiKeyRow.revoked_at, func.now()), name=None)
        .execution_options(synchronize_session=False)
    )


async def _blank_users(
    session: TenantSession | OperatorSession, tenant_id: UUID, which: ColumnElement[bool]
) -> None:
    named = func.concat(f"{DELETED}-", cast(TenantUserRow.id, Text))
    other = aliased(TenantUserRow)
    # Another user may have taken the name, by chance or to prevent the deletion.
    is_taken = exists().where(other.tenant_id == tenant_id, other.name == named)
    await session.execute(
        update(TenantUserRow)
        .where(TenantUserRow.tenant_id == tenant_id, TenantUserRow.status != DELETED, which)
        .values(
            status=DELETED,
            deleted_at=func.now(),
            name=case(
                (is_taken, func.concat(f"{DELETED}-", cast(func.gen_random_uuid(), Text))),
                else_=named,
            ),
        )
        .execution_options(synchronize_session=False)
    )
