"""Settings of Postgres and of the caches in front of it."""

from pydantic import Field, SecretStr

from gateway.config.base import FIRST, SettingsGroup


class DatabaseSettings(SettingsGroup):
    """Postgres, and the caches in front of it."""

    database_url: SecretStr | None = Field(
        default=None,
        description="The address of a Postgres (15 or newer) in place of the embedded one. It "
        "requires `GATEWAY_MASTER_KEY`.",
        examples=["postgresql://user:password@host/database"],
        json_schema_extra=FIRST,
    )
    migration_database_url: SecretStr | None = Field(
        default=None,
        description="The address for migrations, as the schema's owner. Set it where "
        "`GATEWAY_DATABASE_URL` logs in as a member of `image_gateway_app` only. Default: "
        "`GATEWAY_DATABASE_URL`.",
    )
    database_pool_size: int = Field(
        default=8,
        ge=2,
        le=100,
        description="The number of Postgres connections per process for tenants' requests. 15 more "
        "serve reports, operators, background work and money (docs/load.md): keep the sum over all "
        "processes below Postgres's `max_connections`; `gateway doctor` checks it.",
    )
    cache_ttl_seconds: float = Field(
        default=600.0,
        gt=0,
        description="The longest time, in seconds, that a cached key, limit, credential or price "
        "is used without being read again. Postgres announces changes at once, and records them "
        "for gateways that miss an announcement, which read the records every five seconds.",
    )
    cache_max_entries: int = Field(
        default=100_000,
        ge=100,
        description="The number of entries per cache and process; the least recently used one goes "
        "first. A caller takes 1.6 kilobytes.",
    )
