"""Settings of traces."""

from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator

from gateway.config.base import SettingsGroup


class TraceSettings(SettingsGroup):
    """Traces by OpenTelemetry (docs/traces.md). The library reads `OTEL_SERVICE_NAME`,
    `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_TRACES_SAMPLER` from the environment itself.
    """

    otel_exporter_otlp_endpoint: str | None = Field(
        default=None,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="The address of an OTLP collector over HTTP, to which `/v1/traces` is added. "
        "Without it there are no traces. Needs `pip install 'image-gateway[otel]'`.",
        examples=["http://127.0.0.1:4318"],
    )
    otel_exporter_otlp_traces_endpoint: str | None = Field(
        default=None,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        description="The whole address for traces, instead of the former.",
        examples=["http://127.0.0.1:4318/v1/traces"],
    )
    otel_exporter_otlp_headers: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"
        ),
        description="Headers for the collector: `name=value`, separated by commas.",
    )
    otel_exporter_otlp_timeout: float = Field(
        default=10.0,
        gt=0,
        le=300,
        validation_alias=AliasChoices(
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"
        ),
        description="The seconds in which the collector has to answer.",
    )
    otel_exporter_otlp_compression: Literal["none", "gzip"] = Field(
        default="none",
        validation_alias=AliasChoices(
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"
        ),
        description="Compression of what is sent. It takes CPU time of the gateway.",
    )
    otel_exporter_otlp_protocol: Literal["http/protobuf"] = Field(
        default="http/protobuf",
        validation_alias=AliasChoices(
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
        ),
        description="OTLP's protocol; another one is refused.",
    )
    otel_sdk_disabled: bool = Field(
        default=False,
        validation_alias=AliasChoices("OTEL_SDK_DISABLED"),
        description="`true` turns traces off, whatever the addresses say.",
    )

    @field_validator("otel_exporter_otlp_endpoint", "otel_exporter_otlp_traces_endpoint")
    @classmethod
    def _require_http(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://; OTLP by gRPC is not supported")
        return value

    @property
    def traces_endpoint(self) -> str | None:
        """The address that takes traces; None without traces."""
        if self.otel_sdk_disabled:
            return None
        if self.otel_exporter_otlp_traces_endpoint is not None:
            return self.otel_exporter_otlp_traces_endpoint
        base = self.otel_exporter_otlp_endpoint
        return None if base is None else f"{base.removesuffix('/')}/v1/traces"
