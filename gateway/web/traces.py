"""Traces of requests: off unless an OTLP endpoint is set (docs/traces.md)."""

from collections.abc import MutableMapping
from importlib import import_module
from typing import Any, Protocol, cast

from fastapi.telemetry import TelemetryConfig
from opentelemetry.trace import TracerProvider

from gateway.config import Settings
from gateway.errors import ConfigurationError
from gateway.tracing import Parent
from gateway.web.routes import find_route


class Traces(Protocol):
    """Export of traces (`gateway.trace_export`)."""

    provider: TracerProvider

    def begin(self, span: object, name: str, route: str, request_id: str) -> Parent | None:
        """Name the span of a request; return it as parent of steps, None if it is not sampled."""

    async def close(self) -> None:
        """Send what is queued, for a bounded time, and stop."""


def open_traces(settings: Settings) -> Traces | None:
    """Open the export of traces; None where no endpoint is set.

    Raises:
        ConfigurationError: the packages of the extra are not installed.
    """
    if settings.traces_endpoint is None:
        return None
    return cast("Traces", _library().TraceExport(settings))


def check_traces(settings: Settings) -> None:
    """Refuse to start without the packages that the settings need.

    Raises:
        ConfigurationError: they are not installed.
    """
    if settings.traces_endpoint is not None:
        _library()


def telemetry_of(traces: Traces | None) -> TelemetryConfig:
    """Return FastAPI's own configuration: spans of requests alone, and nothing by environment."""
    return {
        "tracing": traces is not None,
        "tracer_provider": None if traces is None else traces.provider,
        "operation_spans": False,
        "metrics": False,
        "logs": False,  # they would hold the texts of errors
        "auto_configure": False,
        "exclude": _is_quiet,
    }


def _is_quiet(scope: MutableMapping[str, Any]) -> bool:
    return find_route(scope["path"]).is_quiet


def _library() -> Any:  # noqa: ANN401 - a module that may be absent
    try:
        return import_module("gateway.trace_export")
    except ImportError as error:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, and the packages that send them are not "
            f"installed ({error.name} is missing). Install them with "
            "`pip install 'image-gateway[otel]'`, or set OTEL_SDK_DISABLED=true."
        ) from None
