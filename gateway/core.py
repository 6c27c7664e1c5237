"""The core of the gateway: settings, the database, and the gateway's own secrets."""

from dataclasses import dataclass, field

from gateway.config import Settings
from gateway.db.engine import Database
from gateway.domain import SecretText
from gateway.images.catalog import Catalog
from gateway.tenancy.key_format import Pepper
from gateway.tenancy.vault import Vault
from gateway.webhooks.sealing import Sealing


@dataclass(frozen=True, slots=True)
class Reader:
    """The part that commands need which only read."""

    settings: Settings
    database: Database
    catalog: Catalog


@dataclass(frozen=True, slots=True)
class Core(Reader):
    """The part that every command needs which changes something."""

    vault: Vault
    pepper: Pepper
    link_key: bytes = field(repr=False)
    webhook_sealing: Sealing
    revision: str
    new_admin_key: SecretText | None
