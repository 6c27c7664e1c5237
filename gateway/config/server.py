"""Settings of the server process: its address, its data directory, its start and its end."""

import getpass
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

import platformdirs
from pydantic import AliasChoices, Field, field_validator, model_validator

from gateway.config.base import FIRST, SettingsGroup

SERVICE_LINK_SCHEMES = ("tcp://", "udp://", "sctp://")


def default_data_dir() -> Path:
    """The user's data directory; for root, where services keep theirs."""
    if sys.platform != "win32" and getpass.getuser() == "root":
        return Path("/var/lib/image-gateway")
    return Path(platformdirs.user_data_dir("image-gateway"))


def is_service_link(value: object) -> bool:
    """True for `GATEWAY_PORT=tcp://…`, which Kubernetes sets for a service named `gateway`."""
    return isinstance(value, str) and value.startswith(SERVICE_LINK_SCHEMES)


class ServerSettings(SettingsGroup):
    """Address, data directory, processes, start and shutdown."""

    config_file: Path | None = Field(
        default=None,
        description="A TOML or JSON file with settings. It is read below the environment and "
        "`.env`, which win.",
        examples=["/etc/image-gateway/gateway.toml"],
    )
    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="The directory for the embedded Postgres, images, the master key and the "
        "journal. Default: the user's data directory; for root `/var/lib/image-gateway`.",
        examples=["/var/lib/image-gateway"],
        json_schema_extra=FIRST,
    )
    host: str = Field(
        default="127.0.0.1",
        description="The address that `gateway serve` listens on unless `--host` is given. Use "
        "`0.0.0.0` in a container.",
        json_schema_extra=FIRST,
    )
    port: int = Field(
        default=8000,
        ge=1,
        le=65_535,
        validation_alias=AliasChoices("GATEWAY_PORT", "PORT"),
        description="The port that `gateway serve` listens on unless `--port` is given. `PORT` is "
        "read where `GATEWAY_PORT` is not set.",
        json_schema_extra=FIRST,
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="The number of worker processes of `gateway serve` unless `--workers` is "
        "given. One per processor core is a good start.",
        json_schema_extra=FIRST,
    )
    public_url: str = Field(
        default="http://127.0.0.1:8000",
        description="The address at which clients reach the gateway. Image links begin with it.",
        json_schema_extra=FIRST,
    )
    stream_keepalive_seconds: float = Field(
        default=15.0,
        gt=0,
        description="The seconds between comments in an event stream, which keep proxies from "
        "closing it.",
    )
    keepalive_seconds: int = Field(
        default=75,
        ge=1,
        le=3600,
        description="The seconds that an idle client connection stays open. Keep it longer than "
        "the load balancer's own idle time, else the balancer sends requests into closing "
        "connections and answers 502.",
    )
    shutdown_delay_seconds: float = Field(
        default=0.0,
        ge=0,
        le=300,
        description="The seconds after SIGTERM in which `/ready` answers 503 and requests are "
        "still accepted. Behind a load balancer, set it to the time the balancer needs to stop "
        "sending requests. Connections that are open then are served for one more second, with "
        "several workers also without a delay.",
    )
    drain_seconds: float = Field(
        default=25.0,
        ge=0,
        description="The seconds that paid calls may take to finish after the shutdown delay.",
    )
    tls_cert_file: Path | None = Field(
        default=None,
        description="A PEM file with the server's certificate and those that issued it, for HTTPS "
        "without a proxy. It is read again at SIGHUP.",
        examples=["/etc/image-gateway/fullchain.pem"],
    )
    tls_key_file: Path | None = Field(
        default=None,
        description="The PEM file with the private key of `GATEWAY_TLS_CERT_FILE`, without a "
        "passphrase. It is read again at SIGHUP.",
        examples=["/etc/image-gateway/privkey.pem"],
    )
    prometheus_multiproc_dir: Path | None = Field(
        default=None,
        validation_alias="PROMETHEUS_MULTIPROC_DIR",
        description="The directory in which several processes share their metrics. `gateway serve "
        "--workers` makes one itself; set it only if another program starts the processes.",
    )

    @model_validator(mode="after")
    def _require_both_tls_files(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError(
                "GATEWAY_TLS_CERT_FILE and GATEWAY_TLS_KEY_FILE belong together: set both for "
                "HTTPS, or neither."
            )
        return self

    @property
    def tls_files(self) -> tuple[Path, Path] | None:
        """The files of certificate and key; None without HTTPS."""
        if self.tls_cert_file is None or self.tls_key_file is None:
            return None
        return self.tls_cert_file, self.tls_key_file

    @field_validator("port", mode="wrap")
    @classmethod
    def _ignore_service_links(cls, value: object, read: Callable[[object], int]) -> int:
        return read(cls.model_fields["port"].default if is_service_link(value) else value)
