"""Export of traces. Imported only where traces are on: OpenTelemetry's SDK is an extra.

FastAPI begins and ends the span of each request; the SDK decides which are sampled. What FastAPI
takes from the request (path, query, host) may hold ids, signatures or a client's own text, so only
the attributes named here leave the process, and no events, which would quote errors.
"""

import random
import time
from collections.abc import Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    NoOpTracer,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TracerProvider,
    get_current_span,
)
from opentelemetry.util.re import parse_env_headers
from opentelemetry.util.types import Attributes, AttributeValue

from gateway import __version__
from gateway.config import Settings
from gateway.otlp import SERVER, OtlpSender, encode_span, encode_step
from gateway.tracing import Attribute, EndedStep, Parent

SERVICE = "image-gateway"
KEPT = frozenset(
    (
        *("http.request.method", "http.response.status_code", "http.route", "url.scheme"),
        *("network.protocol.version", "error.type", "gateway.request.id", "gateway.error.code"),
    )
)
"""The attributes of a request's span that leave the process."""


class _RequestSpan(Span):
    """The span of a request, which keeps the attributes that may leave the process.

    The SDK's own copies and checks all of them, which takes most of the time of a span.
    """

    def __init__(
        self, sender: OtlpSender, context: SpanContext, parent_id: int, name: str, started_ns: int
    ) -> None:
        self._sender = sender
        self._context = context
        self._parent_id = parent_id
        self._name = name
        self._started_ns = started_ns
        self._attributes: dict[str, Attribute] = {}
        self._is_failed = False

    def get_span_context(self) -> SpanContext:
        return self._context

    def is_recording(self) -> bool:
        return True

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        if key in KEPT and isinstance(value, str | int):
            self._attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def update_name(self, name: str) -> None:
        self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        code = status.status_code if isinstance(status, Status) else status
        self._is_failed = code is StatusCode.ERROR

    def add_event(
        self,
        name: str,
        attributes: Attributes | None = None,
        timestamp: int | None = None,
    ) -> None:
        """Leave it out: events quote errors."""

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Leave it out, as an event."""

    def end(self, end_time: int | None = None) -> None:
        self._sender.send(
            encode_span(
                self._context.trace_id,
                self._context.span_id,
                self._parent_id,
                self._name,
                SERVER,
                self._started_ns,
                end_time or time.time_ns(),
                self._attributes,
                is_failed=self._is_failed,
            )
        )


class _Tracer(NoOpTracer):
    """Starts the spans of requests; the SDK's sampler decides which are recorded."""

    def __init__(self, sender: OtlpSender, sampler: Sampler) -> None:
        self._sender = sender
        self._sampler = sampler

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> Span:
        parent = get_current_span(context).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else random.getrandbits(128) or 1
        decided = self._sampler.should_sample(context, trace_id, name, kind, None, None)
        is_sampled = decided.decision is Decision.RECORD_AND_SAMPLE
        span_context = SpanContext(
            trace_id,
            random.getrandbits(64) or 1,
            is_remote=False,
            trace_flags=TraceFlags(TraceFlags.SAMPLED if is_sampled else TraceFlags.DEFAULT),
        )
        if not is_sampled:
            return NonRecordingSpan(span_context)
        span = _RequestSpan(
            self._sender,
            span_context,
            parent.span_id if parent.is_valid else 0,
            name,
            start_time or time.time_ns(),
        )
        span.set_attributes(attributes or {})
        return span


class _Provider(TracerProvider):
    """Has one tracer for all."""

    def __init__(self, tracer: _Tracer) -> None:
        self._tracer = tracer

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes | None = None,
    ) -> _Tracer:
        return self._tracer


class TraceExport:
    """The provider of FastAPI's spans, and the recorder of steps; both go into one queue."""

    def __init__(self, settings: Settings) -> None:
        # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and OTEL_TRACES_SAMPLER are read by the SDK.
        resource = _resource()
        headers = settings.otel_exporter_otlp_headers
        self._sender = OtlpSender(
            settings.traces_endpoint or "",
            resource={name: str(value) for name, value in resource.attributes.items()},
            scope=("gateway", __version__),
            headers=parse_env_headers(
                "" if headers is None else headers.get_secret_value(), liberal=True
            ),
            seconds=settings.otel_exporter_otlp_timeout,
            is_compressed=settings.otel_exporter_otlp_compression == "gzip",
        )
        # The sampler of the environment; spans are made without the SDK.
        sampler = SdkTracerProvider(shutdown_on_exit=False).sampler
        self.provider = _Provider(_Tracer(self._sender, sampler))

    def begin(self, span: object, name: str, route: str, request_id: str) -> Parent | None:
        """Name the span of a request; return it as parent of steps, None if it is not sampled."""
        if not isinstance(span, _RequestSpan):
            return None
        span.update_name(name)
        span.set_attribute("http.route", route)
        span.set_attribute("gateway.request.id", request_id)
        context = span.get_span_context()
        return Parent(self, context.trace_id, context.span_id)

    def ended(self, step: EndedStep) -> None:
        """Queue a step."""
        self._sender.send(encode_step(step))

    async def close(self) -> None:
        """Send what is queued, for a bounded time, and stop."""
        await self._sender.close()


def _resource() -> Resource:
    found = Resource.create({"service.version": __version__})
    if str(found.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
        return found.merge(Resource({"service.name": SERVICE}))
    return found
