"""The limits of the pipeline."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PipelineLimits:
    """The limits of one pipeline; see Settings for the meaning of each."""

    max_concurrent_generations: int
    max_concurrent_generations_per_tenant: int
    max_concurrent_test_generations: int
    admission_seconds: float
    settle_wait_seconds: float
    hold_margin_seconds: int
    read_timeout_seconds: float | None
