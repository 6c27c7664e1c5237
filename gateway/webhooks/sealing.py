"""Webhook secrets at rest: under the tenant's data key, or under a key for the operator's.

Both keys are wrapped by the master key, so its rotation covers these secrets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select

from gateway.db.engine import Database, OperatorSession, TenantSession, one_at_a_time
from gateway.db.tables import DataKeyRow, WebhookEndpointRow, WebhookSecretRow
from gateway.domain import SecretText, new_id
from gateway.tenancy.tenants import keep_living
from gateway.vault.gateway_secrets import (
    GatewaySecrets,
    SecretPurpose,
    end_webhook_keys,
    list_versions,
    roll_webhook_key,
)
from gateway.vault.rotation import ResealedBatch
from gateway.vault.sealing import DataKeyMissing, SealBroken, Vault, seal, unseal

KIND = "webhook_secret"
SEALING = UUID(int=1)
"""The name of the lock that serialises sealing of the operator's secrets."""


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """A secret in its stored form. Its place: its own id and that of its endpoint."""

    id: UUID
    tenant_id: UUID | None
    endpoint_id: UUID
    data_key_version: int | None
    sealed: bytes


class Sealing:
    """The sealing and opening of webhook secrets."""

    def __init__(self, vault: Vault, secrets: GatewaySecrets) -> None:
        self._vault = vault
        self._secrets = secrets

    async def seal(
        self,
        session: TenantSession | OperatorSession,
        tenant_id: UUID | None,
        endpoint_id: UUID,
        secret: SecretText,
    ) -> WebhookSecretRow:
        """Seal a secret into a new row, valid until it is rolled.

        Raises:
            NotFound: the tenant was deleted.
        """
        row = WebhookSecretRow(id=new_id(), tenant_id=tenant_id, endpoint_id=endpoint_id)
        place = (KIND, endpoint_id, row.id)
        if tenant_id is None:
            # Read each time, and serialised: a secret sealed under a key that is being replaced
            # would be lost with that key.
            await one_at_a_time(session, SEALING)
            await self._secrets.refresh_in(OperatorSession(session))
            row.sealed = seal(self._secrets.webhook_keys[0], secret.reveal().encode(), *place)
        else:
            await keep_living(TenantSession(session), tenant_id)
            row.data_key_version, row.sealed = await self._vault.seal_for_tenant(
                TenantSession(session), tenant_id, secret, *place
            )
        return row

    async def open(self, database: Database, found: SealedSecret) -> SecretText:
        """Decrypt the secret for the signature that is about to be made.

        Raises:
            SealBroken: it was changed, or moved from the place that it was sealed for.
            ConfigurationError: the master key behind it is not configured.
        """
        try:
            return await self._open(database, found)
        except DataKeyMissing:
            return await self._open(database, await _read_again(database, found))

    async def _open(self, database: Database, found: SealedSecret) -> SecretText:
        if found.tenant_id is None or found.data_key_version is None:
            try:
                plain = _open_with(self._secrets.webhook_keys, found)
            except SealBroken:
                # Sealed under a key that this worker does not know yet.
                await self._secrets.refresh(database, max_age_seconds=1.0)
                plain = _open_with(self._secrets.webhook_keys, found)
            return SecretText(plain.decode())
        return await self._vault.open_for_tenant(
            database, found.tenant_id, found.data_key_version, found.sealed, *_place(found)
        )


async def reseal(
    session: OperatorSession, vault: Vault, after: UUID | None, limit: int
) -> ResealedBatch:
    """Reseal tenants' secrets after the id `after` under their tenants' newest data keys."""
    newest = (
        select(func.max(DataKeyRow.version))
        .where(DataKeyRow.tenant_id == WebhookSecretRow.tenant_id)
        .scalar_subquery()
    )
    query = (
        select(WebhookSecretRow)
        .where(WebhookSecretRow.data_key_version < newest)
        .order_by(WebhookSecretRow.id)
        .limit(limit)
        .with_for_update()
    )
    if after is not None:
        query = query.where(WebhookSecretRow.id > after)
    rows = (await session.scalars(query)).all()
    unreadable = []
    for row in rows:
        tenant_id, version = row.tenant_id, row.data_key_version
        if tenant_id is None or version is None:
            continue
        place = _place(_sealed(row))
        try:
            key = await vault.data_key(session, tenant_id, version)
            plain = unseal(key, row.sealed, tenant_id, *place)
        except SealBroken:
            unreadable.append(row.id)
            continue
        row.data_key_version, row.sealed = await vault.seal_for_tenant(
            TenantSession(session), tenant_id, SecretText(plain.decode()), *place
        )
    last = rows[-1].id if len(rows) == limit else None
    return ResealedBatch(len(rows) - len(unreadable), tuple(unreadable), last)


async def reseal_house(
    session: OperatorSession, vault: Vault, after: UUID | None, limit: int
) -> ResealedBatch:
    """Reseal the operator's own secrets under a new key, in one transaction: they are few.

    `after` and `limit` belong to the common signature and are not used.
    """
    del after, limit
    # In the lock order of a roll, to avoid deadlocks.
    await session.execute(
        select(WebhookEndpointRow.id)
        .where(WebhookEndpointRow.tenant_id.is_(None))
        .with_for_update()
    )
    await one_at_a_time(session, SEALING)
    rows = (
        await session.scalars(
            select(WebhookSecretRow).where(WebhookSecretRow.tenant_id.is_(None)).with_for_update()
        )
    ).all()
    version = await roll_webhook_key(session, vault)
    versions = await list_versions(session, vault)
    keys = [version.value for version in versions[SecretPurpose.WEBHOOK_KEY]]
    unreadable = []
    for row in rows:
        found = _sealed(row)
        try:
            row.sealed = seal(keys[0], _open_with(keys[1:], found), *_place(found))
        except SealBroken:
            unreadable.append(row.id)
    if not unreadable:
        await end_webhook_keys(session, before_version=version)
    return ResealedBatch(len(rows) - len(unreadable), tuple(unreadable), None)


async def _read_again(database: Database, found: SealedSecret) -> SealedSecret:
    async with database.operator() as session:
        row = await _row(session, found.id)
    return found if row is None else _sealed(row)


async def _row(session: OperatorSession, secret_id: UUID) -> WebhookSecretRow | None:
    return await session.get(WebhookSecretRow, secret_id)


def _open_with(keys: Sequence[bytes], found: SealedSecret) -> bytes:
    for key in keys[:-1]:
        try:
            return unseal(key, found.sealed, *_place(found))
        except SealBroken:
            continue
    return unseal(keys[-1], found.sealed, *_place(found))


def _sealed(row: WebhookSecretRow) -> SealedSecret:
    return SealedSecret(row.id, row.tenant_id, row.endpoint_id, row.data_key_version, row.sealed)


def _place(found: SealedSecret) -> tuple[object, ...]:
    return (KIND, found.endpoint_id, found.id)
