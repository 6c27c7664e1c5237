"""The settings: every group in one object, and the rules that concern several groups."""

import re
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.config.connections import ConnectionSettings
from gateway.config.console import ConsoleSettings
from gateway.config.database import DatabaseSettings
from gateway.config.keys import KeySettings
from gateway.config.limits import LimitSettings
from gateway.config.load import LoadSettings
from gateway.config.logs import LogSettings
from gateway.config.mcp import McpSettings
from gateway.config.metrics import MetricsSettings
from gateway.config.money import MoneySettings
from gateway.config.oidc import OidcSettings
from gateway.config.providers import ProviderSettings
from gateway.config.server import ServerSettings
from gateway.config.storage import StorageSettings
from gateway.config.traces import TraceSettings
from gateway.config.uploads import UploadSettings
from gateway.config.webhooks import WebhookSettings

ENV_FILE = ".env"
SECRET_FORM = re.compile(r"[\x21-\x7e]+")
WELL_KNOWN_SECRETS = frozenset(
    {"changeme", "change-me", "secret", "password", "admin", "test", "default", "sk-1234", "1234"}
)


class Settings(
    ServerSettings,
    KeySettings,
    ProviderSettings,
    DatabaseSettings,
    StorageSettings,
    MoneySettings,
    LimitSettings,
    LoadSettings,
    ConnectionSettings,
    UploadSettings,
    McpSettings,
    WebhookSettings,
    OidcSettings,
    ConsoleSettings,
    LogSettings,
    MetricsSettings,
    TraceSettings,
    BaseSettings,
):
    """All settings of the operator. `gateway.config.loading` reads it from its sources."""

    model_config = SettingsConfigDict(
        env_prefix="GATEWAY_",
        env_file=ENV_FILE,
        extra="ignore",
        env_ignore_empty=True,
        defer_build=False,
    )

    @model_validator(mode="after")
    def _refuse_weak_secrets(self) -> Self:
        named = {
            "GATEWAY_MASTER_KEY": self.master_key,
            "GATEWAY_ADMIN_KEY": self.admin_key,
            "OPENAI_API_KEY": self.openai_api_key,
            "GEMINI_API_KEY": self.gemini_api_key,
            "GATEWAY_LEGACY_API_KEY": self.legacy_api_key,
            "GATEWAY_OIDC_CLIENT_SECRET": self.oidc_client_secret,
            "AWS_SECRET_ACCESS_KEY": self.aws_secret_access_key,
        }
        for name, secret in named.items():
            if secret is None:
                continue
            text = secret.get_secret_value().strip()
            if not text:
                raise ValueError(f"{name} is set but empty. Set it, or remove it altogether.")
            if not SECRET_FORM.fullmatch(text):
                raise ValueError(f"{name} holds a character that no key has, such as a space.")
            if text.lower() in WELL_KNOWN_SECRETS:
                raise ValueError(f"{name} is a well-known value. Choose a random secret.")
        return self

    @model_validator(mode="after")
    def _require_master_key(self) -> Self:
        if self.database_url is not None and not (self.master_key or self.master_key_file):
            raise ValueError(
                "GATEWAY_DATABASE_URL is set, so GATEWAY_MASTER_KEY (or GATEWAY_MASTER_KEY_FILE) "
                "is required: it seals the provider keys in that database. Make one with\n"
                "    python3 -c 'import base64,os;"
                "print(base64.urlsafe_b64encode(os.urandom(32)).decode())'\n"
                "and keep it where the database's backups are not."
            )
        return self

    @property
    def uses_embedded_postgres(self) -> bool:
        """Return True where the gateway runs its own Postgres in the data directory."""
        return self.database_url is None

    @property
    def resolved_journal_dir(self) -> Path:
        """The folder of the workers' journals."""
        return self.journal_dir or self.data_dir / "journal"

    @cached_property
    def image_storage_url(self) -> str:
        """The address of the image store: `file://…` or `s3://…`."""
        return self.storage_url or (self.data_dir.absolute() / "images").as_uri()

    @property
    def oidc_audiences(self) -> tuple[str, ...]:
        """The accepted values of a token's `aud`; by default the gateway's own addresses."""
        given = tuple(name.strip() for name in self.oidc_audience.split(",") if name.strip())
        base = self.public_url.rstrip("/")
        return given or (base, f"{base}/", f"{base}/mcp", f"{base}/mcp/")

    @property
    def resolved_master_key_file(self) -> Path:
        """The file that holds the master keys where no variable does."""
        return self.master_key_file or self.data_dir / "master.key"

    @property
    def quickstart_file(self) -> Path:
        """The file to which the first start writes the keys that it makes."""
        return self.data_dir.absolute() / "quickstart.json"
