"""Settings: the only reader of the environment. Every limit of the gateway has its name here.

A module for each group. `Settings` inherits from every group, so that a class that needs one group
declares it as a parameter and is given the settings whole. Import from this package, not from its
modules; only `proxies` is imported by itself, by those who call others.
"""

from gateway.config.addresses import is_https_or_loopback
from gateway.config.load import LoadSettings
from gateway.config.loading import export_to_workers, load_settings
from gateway.config.oidc import OidcSettings
from gateway.config.settings import SECRET_FORM, Settings
from gateway.config.storage import StorageSettings
from gateway.config.webhooks import WebhookSettings

__all__ = [
    "SECRET_FORM",
    "LoadSettings",
    "OidcSettings",
    "Settings",
    "StorageSettings",
    "WebhookSettings",
    "export_to_workers",
    "is_https_or_loopback",
    "load_settings",
]
