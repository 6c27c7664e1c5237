"""Settings of webhooks: events delivered to endpoints."""

from pydantic import Field

from gateway.config.base import SettingsGroup


class WebhookSettings(SettingsGroup):
    """Events delivered to webhooks (docs/webhooks.md)."""

    webhook_allow_private: bool = Field(
        default=False,
        description="Let webhooks use private networks and plain http, for receivers of your own. "
        "Addresses of cloud metadata services stay refused.",
    )
    webhook_timeout_seconds: float = Field(
        default=10.0, gt=0, le=60, description="The seconds that one delivery attempt may take."
    )
    webhook_max_parallel: int = Field(
        default=32, ge=1, le=1000, description="Delivery attempts at once per process."
    )
    webhook_max_parallel_per_endpoint: int = Field(
        default=2,
        ge=1,
        le=100,
        description="Delivery attempts at once per process to one webhook.",
    )
    webhook_retention_seconds: int = Field(
        default=2_592_000,
        ge=3600,
        le=315_360_000,
        description="The seconds that events are kept, and deliveries that succeeded or were given "
        "up.",
    )
    max_webhooks: int = Field(
        default=10, ge=0, le=1000, description="Webhooks of one tenant, and of the operator."
    )
