"""The groups of settings, and what is known of each setting: its variable, its key, its bounds.

Read by the configuration file and by the generated pages.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo

from gateway.config.base import FIRST, SettingsGroup
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

PREFIX = "GATEWAY_"
NOT_IN_FILE = frozenset({"config_file", "prometheus_multiproc_dir"})
"""A configuration file cannot name another one, and Prometheus's library reads the environment."""
NEVER_EMPTY = (
    *("GATEWAY_DATABASE_URL", "GATEWAY_MIGRATION_DATABASE_URL"),
    *("GATEWAY_MASTER_KEY", "GATEWAY_ADMIN_KEY", "GATEWAY_API_KEY"),
    *("GATEWAY_OIDC_CLIENT_SECRET",),
    *("OPENAI_API_KEY", "GEMINI_API_KEY", "GATEWAY_LEGACY_API_KEY", "AWS_SECRET_ACCESS_KEY"),
)
"""Secrets, and the addresses without which another database would be used: an empty one is a
mistake in a deployment, not a wish to do without.

Left out are the secrets that are absent by design in many deployments and are then passed on empty:
`AWS_SESSION_TOKEN` (lasting keys have none) and `GATEWAY_REDIS_URL` (one instance needs none)."""


@dataclass(frozen=True)
class Setting:
    """One setting. `key` is its name in its group's table, None if no file may set it."""

    name: str
    key: str | None
    field: FieldInfo

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that set it, the strongest first."""
        match self.field.validation_alias:
            case AliasChoices(choices=choices):
                return tuple(choice for choice in choices if isinstance(choice, str))
            case str(variable):
                return (variable,)
            case _:
                return (PREFIX + self.name.upper(),)

    @property
    def variable(self) -> str:
        """The variable that the documentation names."""
        own = (PREFIX + self.name.upper(), self.name.upper())
        return next((name for name in own if name in self.variables), self.variables[0])

    @property
    def argument(self) -> str:
        """The name under which `Settings` takes its value."""
        return self.name if self.field.validation_alias is None else self.variables[0]

    @property
    def is_secret(self) -> bool:
        annotation = self.field.annotation
        return SecretStr in (annotation, *get_args(annotation))

    @property
    def is_first(self) -> bool:
        """One of the dozen that an operator reads first."""
        return self.field.json_schema_extra is FIRST


@dataclass(frozen=True)
class Group:
    """Settings that belong together: a table of a configuration file, a section of a page.

    In its table, a setting's key is its field's name without `prefix`.
    """

    table: str
    title: str
    fields: type[SettingsGroup]
    prefix: str = ""

    def __iter__(self) -> Iterator[Setting]:
        for name, field in self.fields.model_fields.items():
            key = None if name in NOT_IN_FILE else name.removeprefix(self.prefix)
            yield Setting(name, key, field)


GROUPS = (
    Group("server", "Server", ServerSettings),
    Group("keys", "Keys", KeySettings),
    Group("providers", "Providers and models", ProviderSettings, "provider_"),
    Group("database", "Database", DatabaseSettings, "database_"),
    Group("storage", "Image storage", StorageSettings, "storage_"),
    Group("money", "Money", MoneySettings),
    Group("limits", "Limits", LimitSettings),
    Group("load", "Load", LoadSettings),
    Group("connections", "Connections", ConnectionSettings),
    Group("uploads", "Uploads and input images", UploadSettings),
    Group("mcp", "MCP", McpSettings, "mcp_"),
    Group("webhooks", "Webhooks", WebhookSettings, "webhook_"),
    Group("oidc", "Sign-in by OIDC", OidcSettings, "oidc_"),
    Group("console", "Console", ConsoleSettings, "console_"),
    Group("logging", "Logging", LogSettings, "log_"),
    Group("metrics", "Metrics", MetricsSettings, "metrics_"),
    Group("traces", "Traces", TraceSettings, "otel_"),
)
SETTINGS = tuple(setting for group in GROUPS for setting in group)
