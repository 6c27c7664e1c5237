"""Settings of the gateway's own secrets."""

from pathlib import Path

from pydantic import Field, SecretStr

from gateway.config.base import FIRST, SettingsGroup


class KeySettings(SettingsGroup):
    """The gateway's own keys. Keys of providers are in the group `providers`."""

    master_key: SecretStr | None = Field(
        default=None,
        description="The key that seals provider credentials and prompts: 32 random bytes in "
        "base64, or `new,old` during a rotation. Required with `GATEWAY_DATABASE_URL`; with the "
        "embedded Postgres, the first start writes one to `master.key` in the data directory, mode "
        "0600.",
        json_schema_extra=FIRST,
    )
    master_key_file: Path | None = Field(
        default=None,
        description="A file that holds the master key, in place of `GATEWAY_MASTER_KEY`. Default: "
        "`master.key` in the data directory.",
        examples=["/run/secrets/master.key"],
    )
    admin_key: SecretStr | None = Field(
        default=None,
        description="The first admin key (`igw_admin_…`). Without it, the first start makes one "
        "and writes it to `quickstart.json` in the data directory, mode 0600. A new value revokes "
        "the key of the former one.",
        json_schema_extra=FIRST,
    )
    refused_key_max_delay_seconds: float = Field(
        default=5.0,
        ge=0,
        le=60,
        description="The longest delay, in seconds, before an invalid admin key is refused. The "
        "delay grows with repeated failures; 0 refuses at once.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        description="The API key of `gateway demo` and `gateway mcp-stdio`. Default: the quick "
        "start's test key. `mcp-stdio` does not read it from `.env`.",
        examples=["igw_test_…"],
    )
