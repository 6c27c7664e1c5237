"""Settings of rate and concurrency limits, and of the Redis that counts them."""

import re
from typing import Self

from pydantic import Field, SecretStr, model_validator

from gateway.config.base import FIRST, SettingsGroup

REDIS_FORM = re.compile(r"(rediss?|valkeys?)://[^/\s]+(/\d*)?(\?\S*)?$|unix://\S+$")


class LimitSettings(SettingsGroup):
    """Requests and images per minute, and generations at once (docs/limits.md)."""

    redis_url: SecretStr | None = Field(
        default=None,
        description="The Redis or Valkey in which several processes count limits together: "
        "`redis://`, `rediss://` (TLS) or `valkey://`. Default: each process counts for itself.",
        examples=["redis://:password@127.0.0.1:6379/0"],
        json_schema_extra=FIRST,
    )
    redis_timeout_ms: int = Field(
        default=50,
        ge=1,
        le=1000,
        description="The milliseconds that Redis may take before a request is counted without it.",
    )
    limit_lease_seconds: float = Field(
        default=15.0,
        ge=0.5,
        le=600,
        description="The seconds after which the concurrency slots of a killed process are free.",
    )
    default_requests_per_minute: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000_000,
        description="Requests per minute for each tenant that has no such limit of its own. "
        "Default: no limit.",
        examples=["60"],
    )
    default_images_per_minute: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000_000,
        description="Images per minute for each tenant that has no such limit of its own. "
        "Default: no limit.",
        examples=["100"],
    )
    default_concurrent_generations: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000_000,
        description="Generations at once for each tenant that has no such limit of its own. "
        "Default: no limit.",
        examples=["10"],
    )
    house_requests_per_minute: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000_000,
        description="Requests per minute with the house credential, over all tenants. Default: no "
        "limit.",
        examples=["500"],
    )
    house_images_per_minute: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000_000,
        description="Images per minute with the house credential, over all tenants. Default: no "
        "limit.",
        examples=["1000"],
    )
    house_concurrent_generations: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000_000,
        description="Generations at once with the house credential, over all tenants. Default: no "
        "limit.",
        examples=["100"],
    )

    @model_validator(mode="after")
    def _require_redis_address(self) -> Self:
        url = self.redis_url
        if url is not None and not REDIS_FORM.match(url.get_secret_value()):
            raise ValueError(
                "GATEWAY_REDIS_URL must be redis://, rediss:// (TLS) or valkey://, with a host, "
                "such as redis://:password@127.0.0.1:6379/0. Without it, limits are counted in "
                "each process."
            )
        return self
