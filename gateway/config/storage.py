"""Settings of the image store: where images are kept, and for how long."""

from pathlib import Path
from typing import Literal, Self

from pydantic import AliasChoices, Field, SecretStr, model_validator

from gateway.config.base import FIRST, SettingsGroup


class StorageSettings(SettingsGroup):
    """The image store: local files or S3, retention, and the spool for a store that is down."""

    storage_url: str | None = Field(
        default=None,
        description="Where images are kept: `file:///…` or `s3://bucket/prefix`. Default: the "
        "directory `images` in the data directory.",
        examples=["s3://bucket/prefix"],
        json_schema_extra=FIRST,
    )
    image_ttl_seconds: int = Field(
        default=86_400,
        ge=60,
        le=31_536_000,
        description="The seconds that an image link is valid; never longer than its image is kept.",
    )
    image_retention_seconds: int | None = Field(
        default=None,
        ge=60,
        le=315_360_000,
        description="The seconds that images are kept for tenants without a retention of their "
        "own. Default: `GATEWAY_IMAGE_TTL_SECONDS`.",
        json_schema_extra=FIRST,
    )
    aws_endpoint_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        description="The address of an S3-compatible store, if it is not AWS; `http://` is "
        "allowed. `AWS_ENDPOINT_URL_S3` is read before it, `AWS_ENDPOINT` after it.",
        examples=["http://minio:9000"],
    )
    aws_region: str | None = Field(
        default=None,
        validation_alias=AliasChoices("AWS_REGION", "AWS_DEFAULT_REGION"),
        description="The S3 region. `AWS_DEFAULT_REGION` is read as well.",
        examples=["eu-west-1"],
    )
    aws_access_key_id: str | None = Field(
        default=None,
        validation_alias="AWS_ACCESS_KEY_ID",
        description="The S3 access key. Default: the credentials of the machine's role.",
    )
    aws_secret_access_key: SecretStr | None = Field(
        default=None,
        validation_alias="AWS_SECRET_ACCESS_KEY",
        description="The secret of `AWS_ACCESS_KEY_ID`.",
    )
    aws_session_token: SecretStr | None = Field(
        default=None,
        validation_alias="AWS_SESSION_TOKEN",
        description="The session token of temporary S3 credentials.",
    )
    store_retry_seconds: float = Field(
        default=15.0,
        ge=0,
        le=60,
        description="The seconds that a request which needs a link retries a failing store after "
        "its image is paid for.",
    )
    spool_max_bytes: int = Field(
        default=1_073_741_824,
        ge=0,
        description="The bytes of images, over all replicas, that may wait in Postgres for a store "
        "that is down.",
    )
    spool_seconds: int = Field(
        default=604_800,
        ge=60,
        le=31_536_000,
        description="The seconds after which an image that the store still does not accept is "
        "dropped from the spool.",
    )
    orphan_sweep_interval_seconds: int = Field(
        default=21_600,
        ge=60,
        le=31_536_000,
        description="The seconds between two comparisons of the store with the database.",
    )
    orphan_age_seconds: int = Field(
        default=7200,
        ge=900,
        description="The age, in seconds, from which a file without a row, or a row without a "
        "file, is removed. Keep it longer than any call takes.",
    )

    c2pa_certificate_file: Path | None = Field(
        default=None,
        description="A PEM file with the certificates, the signer's first, that sign images which "
        "the gateway had to encode anew (C2PA). Needs the extra `c2pa`. Default: such images carry "
        "IPTC's digital source type alone.",
        examples=["/etc/image-gateway/c2pa.pem"],
    )
    c2pa_private_key_file: Path | None = Field(
        default=None,
        description="The PEM file with the private key of `GATEWAY_C2PA_CERTIFICATE_FILE`.",
        examples=["/etc/image-gateway/c2pa.key"],
    )
    c2pa_algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = (
        Field(default="es256", description="The signature algorithm of the C2PA certificate.")
    )

    @model_validator(mode="after")
    def _require_both_c2pa_files(self) -> Self:
        if (self.c2pa_certificate_file is None) != (self.c2pa_private_key_file is None):
            raise ValueError(
                "GATEWAY_C2PA_CERTIFICATE_FILE and GATEWAY_C2PA_PRIVATE_KEY_FILE go together. Set "
                "both, or neither."
            )
        return self

    @property
    def s3_options(self) -> dict[str, str]:
        """Options of the S3 client that are set; it finds the rest in the machine's environment."""
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
        """The retention of images whose tenant has set none: by default the lifetime of a link."""
        return self.image_retention_seconds or self.image_ttl_seconds
