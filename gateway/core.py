"""The core of the gateway: settings, the database, and the gateway's own secrets."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.config import Settings
from gateway.db.engine import Database

if TYPE_CHECKING:  # read-only commands open none of these, and start faster without them
    from gateway.catalog.loading import Catalog
    from gateway.domain import SecretText
    from gateway.vault.gateway_secrets import GatewaySecrets
    from gateway.vault.key_format import Pepper
    from gateway.vault.sealing import Vault
    from gateway.webhooks.sealing import Sealing


@dataclass(frozen=True, slots=True)
class Reader:
    """The resources that read-only commands need."""

    settings: Settings
    database: Database


@dataclass(frozen=True, slots=True)
class Core(Reader):
    """The resources that every changing command needs."""

    catalog: "Catalog"
    vault: "Vault"
    secrets: "GatewaySecrets"
    webhook_sealing: "Sealing"
    revision: str
    new_admin_key: "SecretText | None"

    @property
    def pepper(self) -> "Pepper":
        """The pepper for new keys."""
        return self.secrets.pepper
