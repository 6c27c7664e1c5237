"""Settings of load shedding and circuit breakers."""

from pydantic import Field

from gateway.config.base import SettingsGroup


class LoadSettings(SettingsGroup):
    """Load shedding and circuit breakers, for each process (docs/load.md)."""

    max_preparing_requests: int = Field(
        default=64,
        ge=1,
        description="Requests that are prepared at once, before their provider call is sent. One "
        "tenant gets at most half.",
    )
    max_waiting_requests: int = Field(
        default=1024,
        ge=1,
        description="Requests that may wait for preparation. Further ones are refused with 503; "
        "one tenant gets at most half.",
    )
    max_wait_ms: int = Field(
        default=1000,
        ge=1,
        le=60_000,
        description="The milliseconds that a request may wait for preparation before it is refused "
        "with 503.",
    )
    max_concurrent_generations: int = Field(
        default=512, ge=1, description="Live generations at once, over all tenants."
    )
    max_concurrent_generations_per_tenant: int | None = Field(
        default=None,
        ge=1,
        description="Live generations at once of one tenant. Default: half of "
        "`GATEWAY_MAX_CONCURRENT_GENERATIONS`.",
        examples=["256"],
    )
    max_concurrent_test_generations: int = Field(
        default=128, ge=1, description="Generations at once of all test keys together."
    )
    circuit_failures: int = Field(
        default=10,
        ge=1,
        le=1000,
        description="Failures in a row that open the circuit of a model and provider key, so that "
        "it is not called for a while.",
    )
    circuit_window_calls: int = Field(
        default=20,
        ge=2,
        le=10_000,
        description="The number of latest calls of which half must fail to open the circuit.",
    )
    circuit_open_seconds: float = Field(
        default=10.0,
        gt=0,
        description="The seconds that a circuit stays open. They double each time the provider "
        "still fails.",
    )
    circuit_max_open_seconds: float = Field(
        default=120.0, gt=0, description="The longest time, in seconds, that a circuit stays open."
    )
    max_circuits: int = Field(
        default=10_000,
        ge=1,
        description="Circuits that are kept in memory; the least recently used one goes first.",
    )

    @property
    def max_wait_seconds(self) -> float:
        """The seconds that a request may wait in a queue before it is refused."""
        return self.max_wait_ms / 1000

    @property
    def resolved_max_generations_per_tenant(self) -> int:
        """The most generations of one tenant at once; by default half of all."""
        return self.max_concurrent_generations_per_tenant or max(
            1, self.max_concurrent_generations // 2
        )
