"""Settings of the metrics."""

from pydantic import Field

from gateway.config.base import SettingsGroup


class MetricsSettings(SettingsGroup):
    """The metrics for Prometheus (docs/metrics.md)."""

    metrics_top_tenants: int = Field(
        default=20,
        ge=0,
        le=500,
        description="The tenants with series of their own: those that spent the most in the last "
        "week. The others are summed as `other`. Each has about twenty series in every process.",
    )
    metrics_tenants: str = Field(
        default="",
        max_length=20_000,
        description="Names or ids of tenants that always have series of their own, separated by "
        "commas.",
        examples=["acme,globex"],
    )

    @property
    def metrics_tenant_names(self) -> tuple[str, ...]:
        """The names or ids of tenants that always have series of their own."""
        return tuple(name.strip() for name in self.metrics_tenants.split(",") if name.strip())
