"""Settings: the only reader of the environment. Every limit of the gateway has its name here."""

import getpass
import os
import re
import sys
from collections.abc import Callable
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import platformdirs
from dotenv import dotenv_values
from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from gateway.errors import ConfigurationError

SECRET_FORM = re.compile(r"[\x21-\x7e]+")
REDIS_FORM = re.compile(r"(rediss?|valkeys?)://[^/\s]+(/\d*)?(\?\S*)?$|unix://\S+$")
ENV_FILE = ".env"
NEVER_EMPTY = (
    *("GATEWAY_DATABASE_URL", "GATEWAY_MASTER_KEY", "GATEWAY_ADMIN_KEY", "GATEWAY_API_KEY"),
    *("OPENAI_API_KEY", "GATEWAY_LEGACY_API_KEY", "AWS_SECRET_ACCESS_KEY"),
)
"""Secrets, and the address without which the embedded Postgres would be started instead: an empty
one is a mistake in a deployment, not a wish to do without."""
WELL_KNOWN_SECRETS = frozenset(
    {"changeme", "change-me", "secret", "password", "admin", "test", "default", "sk-1234", "1234"}
)


def default_data_dir() -> Path:
    """The user's data directory; for root, where services keep theirs."""
    if sys.platform != "win32" and getpass.getuser() == "root":
        return Path("/var/lib/image-gateway")
    return Path(platformdirs.user_data_dir("image-gateway"))


class Settings(BaseSettings):
    """What the operator can set, by environment (`GATEWAY_…`) or a `.env` file."""

    model_config = SettingsConfigDict(
        env_prefix="GATEWAY_", env_file=ENV_FILE, extra="ignore", env_ignore_empty=True
    )

    data_dir: Path = Field(default_factory=default_data_dir)
    database_url: SecretStr | None = None
    migration_database_url: SecretStr | None = None
    master_key: SecretStr | None = None
    master_key_file: Path | None = None
    admin_key: SecretStr | None = None
    api_key: SecretStr | None = None  # only for `gateway demo` and `gateway mcp-stdio`
    host: str = "127.0.0.1"
    port: int = Field(
        default=8000, ge=1, le=65_535, validation_alias=AliasChoices("GATEWAY_PORT", "PORT")
    )
    workers: int = Field(default=1, ge=1, le=64)
    public_url: str = "http://127.0.0.1:8000"
    allowed_hosts: str = ""
    storage_url: str | None = None
    image_ttl_seconds: int = Field(default=86_400, ge=60, le=31_536_000)
    image_retention_seconds: int | None = Field(default=None, ge=60, le=315_360_000)
    orphan_sweep_interval_seconds: int = Field(default=21_600, ge=60, le=31_536_000)
    orphan_age_seconds: int = Field(default=7200, ge=900)
    store_retry_seconds: float = Field(default=15.0, ge=0, le=60)
    spool_max_bytes: int = Field(default=1_073_741_824, ge=0)
    spool_seconds: int = Field(default=604_800, ge=60, le=31_536_000)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] | None = None

    openai_api_key: SecretStr | None = Field(default=None, validation_alias="OPENAI_API_KEY")
    openai_base_url: str = Field(
        default="https://api.openai.com/v1", validation_alias="OPENAI_BASE_URL"
    )

    legacy_base_url: str | None = None
    legacy_api_key: SecretStr | None = None
    legacy_models: str = ""
    aws_endpoint_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    )
    aws_region: str | None = Field(
        default=None, validation_alias=AliasChoices("AWS_REGION", "AWS_DEFAULT_REGION")
    )
    aws_access_key_id: str | None = Field(default=None, validation_alias="AWS_ACCESS_KEY_ID")
    aws_secret_access_key: SecretStr | None = Field(
        default=None, validation_alias="AWS_SECRET_ACCESS_KEY"
    )
    aws_session_token: SecretStr | None = Field(default=None, validation_alias="AWS_SESSION_TOKEN")

    prometheus_multiproc_dir: Path | None = Field(
        default=None, validation_alias="PROMETHEUS_MULTIPROC_DIR"
    )

    oidc_issuer: str | None = None
    oidc_audience: str = ""
    oidc_tenant_claim: str = Field(default="tenant", min_length=1)
    oidc_user_claim: str = Field(default="sub", min_length=1)
    oidc_scope_prefix: str = Field(default="", pattern=r"^[\x21\x23-\x5b\x5d-\x7e]*$")
    oidc_leeway_seconds: int = Field(default=30, ge=0, le=300)
    oidc_keys_seconds: float = Field(default=3600.0, gt=0)
    oidc_refetch_seconds: float = Field(default=10.0, gt=0)
    oidc_timeout_seconds: float = Field(default=5.0, gt=0)
    oidc_max_document_bytes: int = Field(default=262_144, ge=1024)
    oidc_max_token_characters: int = Field(default=16_384, ge=512)

    redis_url: SecretStr | None = None
    redis_timeout_ms: int = Field(default=50, ge=1, le=1000)
    limit_lease_seconds: float = Field(default=15.0, ge=0.5, le=600)
    default_requests_per_minute: int | None = Field(default=None, ge=0, le=1_000_000_000)
    default_images_per_minute: int | None = Field(default=None, ge=0, le=1_000_000_000)
    default_concurrent_generations: int | None = Field(default=None, ge=0, le=1_000_000_000)
    house_requests_per_minute: int | None = Field(default=None, ge=0, le=1_000_000_000)
    house_images_per_minute: int | None = Field(default=None, ge=0, le=1_000_000_000)
    house_concurrent_generations: int | None = Field(default=None, ge=0, le=1_000_000_000)

    webhook_allow_private: bool = False
    webhook_timeout_seconds: float = Field(default=10.0, gt=0, le=60)
    webhook_max_parallel: int = Field(default=32, ge=1, le=1000)
    webhook_max_parallel_per_endpoint: int = Field(default=2, ge=1, le=100)
    webhook_retention_seconds: int = Field(default=2_592_000, ge=3600, le=315_360_000)
    max_webhooks: int = Field(default=10, ge=0, le=1000)

    request_log: bool = True
    request_log_retention_days: int = Field(default=30, ge=1, le=3650)
    request_log_max_waiting: int = Field(default=10_000, ge=1, le=1_000_000)
    request_log_unauthenticated_per_minute: int = Field(default=60, ge=0, le=100_000)

    idempotency_seconds: int = Field(default=86_400, ge=60, le=2_592_000)
    default_model: str = "gpt-image-2.5-sunburst"
    dall_e_2_for_old_sdks: bool = True
    prompts_dir: Path | None = None
    max_header_bytes: int = Field(default=65_536, ge=4096, le=1_048_576)
    max_headers: int = Field(default=100, ge=16, le=10_000)
    max_url_bytes: int = Field(default=8192, ge=1024, le=65_536)
    header_seconds: float = Field(default=10.0, gt=0)
    send_seconds: float = Field(default=60.0, gt=0)
    max_pipelined_requests: int = Field(default=16, ge=1, le=1000)
    max_connections: int = Field(default=4096, ge=16, le=1_000_000)
    max_idle_connections: int = Field(default=2048, ge=1)
    max_connections_per_address: int | None = Field(default=None, ge=1)
    proxy_addresses: str = "127.0.0.0/8,::1"
    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    max_upload_bytes: int = Field(default=209_715_200, ge=1024)
    max_json_upload_bytes: int = Field(default=67_108_864, ge=1024)
    max_mcp_body_bytes: int = Field(default=33_554_432, ge=1024)
    upload_seconds: float = Field(default=300.0, gt=0)
    max_concurrent_uploads: int = Field(default=256, ge=1)
    mcp_send_seconds: float = Field(default=60.0, gt=0)
    mcp_sse: bool = False
    max_mcp_sse_streams: int = Field(default=256, ge=1)
    max_concurrent_mcp_requests: int = Field(default=512, ge=1)
    max_concurrent_large_mcp_requests: int = Field(default=16, ge=1)
    max_input_pixels: int = Field(default=40_000_000, ge=65_536)
    decoder_processes: int = Field(default=2, ge=1, le=64)
    decoder_job_seconds: float = Field(default=15.0, gt=0)
    decoder_queue_seconds: float = Field(default=20.0, gt=0)
    decoder_memory_bytes: int = Field(default=1_073_741_824, ge=134_217_728)
    download_seconds: float = Field(default=20.0, gt=0)
    stream_keepalive_seconds: float = Field(default=15.0, gt=0)
    max_preparing_requests: int = Field(default=64, ge=1)
    max_waiting_requests: int = Field(default=1024, ge=1)
    max_wait_ms: int = Field(default=1000, ge=1, le=60_000)
    max_concurrent_generations: int = Field(default=512, ge=1)
    max_concurrent_generations_per_tenant: int | None = Field(default=None, ge=1)
    max_concurrent_test_generations: int = Field(default=128, ge=1)
    circuit_failures: int = Field(default=10, ge=1, le=1000)
    circuit_window_calls: int = Field(default=20, ge=2, le=10_000)
    circuit_open_seconds: float = Field(default=10.0, gt=0)
    circuit_max_open_seconds: float = Field(default=120.0, gt=0)
    max_circuits: int = Field(default=10_000, ge=1)
    database_pool_size: int = Field(default=8, ge=2, le=100)
    admission_timeout_ms: int = Field(default=800, gt=0)
    settle_wait_seconds: float = Field(default=2.0, gt=0)
    group_commit_max_batch: int = Field(default=64, ge=1, le=1000)
    cache_ttl_seconds: float = Field(default=30.0, gt=0)
    cache_max_entries: int = Field(default=100_000, ge=100)
    refused_key_max_delay_seconds: float = Field(default=5.0, ge=0, le=60)
    provider_connect_timeout_seconds: float = Field(default=5.0, gt=0)
    provider_read_timeout_seconds: float | None = Field(default=None, gt=0)
    provider_max_connections: int = Field(default=1000, ge=1)
    provider_max_answer_bytes: int = Field(default=536_870_912, ge=1_048_576)
    hold_margin_seconds: int = Field(default=60, ge=1)
    journal_dir: Path | None = None
    estimate_after_seconds: int = Field(default=3600, ge=1)
    sweep_interval_seconds: float = Field(default=5.0, gt=0)
    keepalive_seconds: int = Field(default=75, ge=1, le=3600)
    shutdown_delay_seconds: float = Field(default=0.0, ge=0, le=300)
    drain_seconds: float = Field(default=25.0, ge=0)

    @field_validator("port", mode="wrap")
    @classmethod
    def _ignore_service_links(cls, value: object, read: Callable[[object], int]) -> int:
        """Kubernetes gives each pod `GATEWAY_PORT=tcp://…` of a service that is named `gateway`."""
        is_link = isinstance(value, str) and value.startswith(("tcp://", "udp://", "sctp://"))
        return read(cls.model_fields["port"].default if is_link else value)

    @model_validator(mode="after")
    def _refuse_weak_secrets(self) -> Self:
        named = {
            "GATEWAY_MASTER_KEY": self.master_key,
            "GATEWAY_ADMIN_KEY": self.admin_key,
            "OPENAI_API_KEY": self.openai_api_key,
            "GATEWAY_LEGACY_API_KEY": self.legacy_api_key,
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

    @model_validator(mode="after")
    def _require_legacy_host(self) -> Self:
        if bool(self.hosted_models) != (self.legacy_base_url is not None):
            raise ValueError(
                "GATEWAY_LEGACY_BASE_URL and GATEWAY_LEGACY_MODELS belong together: the address of "
                "an OpenAI-compatible host, and the retired models it still has (dall-e-2,…)."
            )
        return self

    @model_validator(mode="after")
    def _require_provider_addresses(self) -> Self:
        named = {"OPENAI_BASE_URL": self.openai_base_url}
        if self.legacy_base_url is not None:
            named["GATEWAY_LEGACY_BASE_URL"] = self.legacy_base_url
        for name, url in named.items():
            if not _is_web_address(url) or {"?", "#"} & set(url):
                raise ValueError(
                    f"{name} must be an https:// or http:// address such as "
                    "https://api.openai.com/v1, without user, password or query."
                )
        return self

    @model_validator(mode="after")
    def _require_proxy_addresses(self) -> Self:
        try:
            _ = self.proxy_networks
        except ValueError:
            raise ValueError(
                "GATEWAY_PROXY_ADDRESSES must be addresses or networks, separated by commas, such "
                "as 10.0.0.5,192.168.0.0/16."
            ) from None
        return self

    @model_validator(mode="after")
    def _require_safe_issuer(self) -> Self:
        issuer = self.oidc_issuer
        if issuer is not None and (not is_https_or_loopback(issuer) or {"?", "#"} & set(issuer)):
            raise ValueError(
                "GATEWAY_OIDC_ISSUER must be the https:// address that your identity provider "
                "calls its issuer, without a query (http:// on this machine only). To accept API "
                "keys alone, remove it."
            )
        return self

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

    @property
    def uses_embedded_postgres(self) -> bool:
        """Whether the gateway runs its own Postgres in the data directory."""
        return self.database_url is None

    @property
    def resolved_journal_dir(self) -> Path:
        """Where workers note the calls that they send."""
        return self.journal_dir or self.data_dir / "journal"

    @cached_property
    def image_storage_url(self) -> str:
        """Where images go: `file://…` or `s3://…`."""
        return self.storage_url or (self.data_dir.absolute() / "images").as_uri()

    @property
    def s3_options(self) -> dict[str, str]:
        """What was said of the S3 of `image_storage_url`; its client finds the rest by itself."""
        key, token = self.aws_secret_access_key, self.aws_session_token
        given = {
            "endpoint": self.aws_endpoint_url,
            "region": self.aws_region,
            "access_key_id": self.aws_access_key_id,
            "secret_access_key": None if key is None else key.get_secret_value(),
            "session_token": None if token is None else token.get_secret_value(),
        }
        return {name: value for name, value in given.items() if value}

    @property
    def resolved_image_retention_seconds(self) -> int:
        """How long images are kept where their tenant says nothing: as long as a link lives."""
        return self.image_retention_seconds or self.image_ttl_seconds

    @property
    def resolved_max_generations_per_tenant(self) -> int:
        """How many generations one tenant may have under way: by default half of all."""
        return self.max_concurrent_generations_per_tenant or max(
            1, self.max_concurrent_generations // 2
        )

    @property
    def extra_hosts(self) -> list[str]:
        """Further host names under which MCP clients may call."""
        return [host.strip() for host in self.allowed_hosts.split(",") if host.strip()]

    @property
    def proxy_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The operator's own reverse proxies, behind one of whose addresses stand many clients."""
        given = (part.strip() for part in self.proxy_addresses.split(","))
        return tuple(ip_network(part, strict=False) for part in given if part)

    @property
    def hosted_models(self) -> list[str]:
        """Retired models that the operator's own OpenAI-compatible host still has."""
        return [name.strip() for name in self.legacy_models.split(",") if name.strip()]

    @property
    def oidc_audiences(self) -> tuple[str, ...]:
        """What a token's `aud` must name one of; by default the gateway's own addresses."""
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

    @property
    def resolved_log_format(self) -> Literal["console", "json"]:
        """Readable lines for a person at a terminal, JSON for everything else."""
        return self.log_format or ("console" if sys.stderr.isatty() else "json")


def is_https_or_loopback(url: str) -> bool:
    """Whether nobody on the way can change what is fetched from this address."""
    if not _is_web_address(url):
        return False
    parts = urlsplit(url)
    return parts.scheme == "https" or _is_loopback(parts.hostname)


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    if not has_host or parts.username is not None or not url.isascii() or re.search(r"\s", url):
        return False
    return parts.scheme in {"https", "http"}


def proxy_for(url: str) -> str | None:
    """The proxy that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY name for an address, if any.

    Raises:
        ConfigurationError: it is of a kind that is not spoken (SOCKS).
    """
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"The environment names a proxy for {parts.scheme}:// that is not an http:// or "
            f"https:// address. Change it, or list {parts.hostname} in NO_PROXY."
        )
    return proxy


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def load_settings(*, read_env_file: bool = True) -> Settings:
    """Read the environment, and `.env` in the current folder.

    Raises:
        ConfigurationError: a setting cannot work; the message names it, never its value.
    """
    _refuse_empty(read_env_file=read_env_file)
    try:
        if not read_env_file:
            return Settings(_env_file=None)  # type: ignore[call-arg]  # pydantic-settings' own
        return Settings()
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None
    except SettingsError as error:
        raise ConfigurationError(f"A setting cannot be read: {error}") from None


def _refuse_empty(*, read_env_file: bool) -> None:
    """Refuse variables that hold nothing but whose absence would change what is trusted.

    Any other empty variable counts as unset.
    """
    found = {**(dotenv_values(ENV_FILE) if read_env_file else {}), **os.environ}
    given = {name.upper(): value for name, value in found.items()}
    for name in NEVER_EMPTY:
        if name in given and not (given[name] or "").strip():
            raise ConfigurationError(
                f"{name} is set but empty. Give it a value, or remove it altogether."
            )


def _explain(error: ValidationError) -> str:
    """One line per wrong setting. Inputs are left out: they may be secrets."""
    lines = []
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        where = ".".join(str(part) for part in problem["loc"])
        name = where if where.isupper() else f"GATEWAY_{where.upper()}"
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{name}: {message}" if where else message)
    return "\n".join(lines)


def export_to_workers(**variables: str) -> None:
    """Set variables for the processes that are started from here."""
    os.environ.update(variables)
