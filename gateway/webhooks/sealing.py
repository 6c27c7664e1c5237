"""Webhook secrets at rest: a tenant's under its own data key, the house's under a key of its own.

Both keys are wrapped by the master key, so its rotation takes these secrets along.
"""

from dataclasses import dataclass
from uuid import UUID

from gateway.db.engine import Database, OperatorSession, TenantSession
from gateway.db.tables import WebhookSecretRow
from gateway.domain import SecretText, new_id
from gateway.tenancy.tenants import keep_living
from gateway.tenancy.vault import Vault, seal, unseal

KIND = "webhook_secret"


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """A secret as the database keeps it. Its place: its own id and that of its endpoint."""

    id: UUID
    tenant_id: UUID | None
    endpoint_id: UUID
    data_key_version: int | None
    sealed: bytes


class Sealing:
    """Seals and opens the secrets of webhooks."""

    def __init__(self, vault: Vault, house_key: bytes) -> None:
        self._vault = vault
        self._house_key = house_key

    async def seal(
        self,
        session: TenantSession | OperatorSession,
        tenant_id: UUID | None,
        endpoint_id: UUID,
        secret: SecretText,
    ) -> WebhookSecretRow:
        """A new row, valid until it is rolled.

        Raises:
            NotFound: the tenant was deleted.
        """
        row = WebhookSecretRow(id=new_id(), tenant_id=tenant_id, endpoint_id=endpoint_id)
        place = (KIND, endpoint_id, row.id)
        if tenant_id is None:
            row.sealed = seal(self._house_key, secret.reveal().encode(), *place)
        else:
            await keep_living(TenantSession(session), tenant_id)
            row.data_key_version, row.sealed = await self._vault.seal_for_tenant(
                TenantSession(session), tenant_id, secret, *place
            )
        return row

    async def open(self, database: Database, found: SealedSecret) -> SecretText:
        """The secret itself, for the one signature that is about to be made.

        Raises:
            SealBroken: it was changed, or stands in another place than it was sealed for.
            ConfigurationError: the master key behind it is not configured.
        """
        place = (KIND, found.endpoint_id, found.id)
        if found.tenant_id is None or found.data_key_version is None:
            return SecretText(unseal(self._house_key, found.sealed, *place).decode())
        return await self._vault.open_for_tenant(
            database, found.tenant_id, found.data_key_version, found.sealed, *place
        )
