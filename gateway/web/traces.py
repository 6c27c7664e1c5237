"""Traces of requests: off unless an OTLP endpoint is set (docs/traces.md)."""

from importlib import import_module
from typing import Any, Protocol, cast

from fastapi.telemetry import TelemetryConfig

from gateway.config import Settings
from gateway.errors import ConfigurationError
from gateway.tracing import Parent, Trace, TracedRequest

NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
"""FastAPI's own telemetry is off: see docs/decisions/0068-spans-of-requests.md."""


class RequestSpan(Protocol):
    """The span of a request. `parent`: that of its steps."""

    parent: Parent

    def end(self, status: int | None, *, error_code: str | None, error_type: str | None) -> None:
        """End it; `status` None: the answer did not begin."""


class Traces(Protocol):
    """Export of traces (`gateway.trace_export`)."""

    def begin(self, request: TracedRequest, given: Trace | None) -> RequestSpan | None:
        """Begin the span of a request, below the client's own; None if it is not sampled."""

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


def _library() -> Any:  # noqa: ANN401 - a module that may be absent
    try:
        return import_module("gateway.trace_export")
    except ImportError as error:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, and the packages that send them are not "
            f"installed ({error.name} is missing). Install them with "
            "`pip install 'image-gateway[otel]'`, or set OTEL_SDK_DISABLED=true."
        ) from None
