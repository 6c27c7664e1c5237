"""Export of traces. Imported only where traces are on: OpenTelemetry's SDK is an extra.

The SDK decides which requests are sampled. What a client sends (path, query, host) may hold ids,
signatures or its own text, so only the attributes named here and by the steps leave the process.
"""

import random
import time

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.util.re import parse_env_headers

from gateway import __version__
from gateway.config import Settings
from gateway.otlp import SERVER, OtlpSender, attribute, described, encode_span, encode_step
from gateway.tracing import Attribute, Parent, Trace, TracedRequest, TracedStep

SERVICE = "image-gateway"


class ExportedSpan:
    """The span of a request, from its creation to `end`. `parent`: that of its steps."""

    __slots__ = (
        "_attributes",
        "_name",
        "_parent_id",
        "_request_id",
        "_sender",
        "_started_ns",
        "parent",
    )

    def __init__(
        self,
        sender: OtlpSender,
        parent: Parent,
        parent_id: bytes | None,
        request: TracedRequest,
    ) -> None:
        self.parent = parent
        self._sender = sender
        self._parent_id = parent_id
        self._name = request.name
        self._request_id = request.request_id
        self._attributes: dict[str, Attribute] = {
            "http.request.method": request.method,
            "http.route": request.route,
            "url.scheme": request.scheme,
            "network.protocol.version": request.http_version,
        }
        self._started_ns = time.time_ns()

    def end(self, status: int | None, *, error_code: str | None, error_type: str | None) -> None:
        """End it; `status` None: the answer did not begin."""
        found = self._attributes
        if status is not None:
            found["http.response.status_code"] = status
        if error_code is not None:
            found["gateway.error.code"] = error_code
        if error_type is not None:
            found["error.type"] = error_type
        own = attribute(0x4A, "gateway.request.id", self._request_id)
        self._sender.send(
            encode_span(
                self.parent.trace_id,
                self.parent.span_id,
                self._parent_id,
                described(self._name, SERVER, tuple(found.items())) + own,
                self._started_ns,
                time.time_ns(),
                is_failed=error_type is not None,
            )
        )


class TraceExport:
    """Makes the spans of requests, and records their steps; both go into one queue."""

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
        self._sampler = TracerProvider(shutdown_on_exit=False).sampler

    def begin(self, request: TracedRequest, given: Trace | None) -> ExportedSpan | None:
        """Begin the span of a request, below the client's own; None if it is not sampled."""
        trace_id = random.getrandbits(128) or 1 if given is None else int(given.trace_id, 16)
        context = Context() if given is None else _context_of(given, trace_id)
        decided = self._sampler.should_sample(
            context, trace_id, request.method, SpanKind.SERVER, None, None
        )
        if decided.decision is not Decision.RECORD_AND_SAMPLE:
            return None
        span_id = (random.getrandbits(64) or 1).to_bytes(8, "big")
        parent_id = None if given is None else bytes.fromhex(given.span_id)
        parent = Parent(self, trace_id.to_bytes(16, "big"), span_id)
        return ExportedSpan(self._sender, parent, parent_id, request)

    def ended(self, step: TracedStep, ended_ns: int, *, is_failed: bool) -> None:
        """Queue a step."""
        self._sender.send(encode_step(step, ended_ns, is_failed=is_failed))

    async def close(self) -> None:
        """Send what is queued, for a bounded time, and stop."""
        await self._sender.close()


def _context_of(given: Trace, trace_id: int) -> Context:
    """Build the context in which a sampler finds the client's span."""
    flags = TraceFlags(int(given.flags, 16))
    span = SpanContext(trace_id, int(given.span_id, 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(span), Context())


def _resource() -> Resource:
    found = Resource.create({"service.version": __version__})
    if str(found.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
        return found.merge(Resource({"service.name": SERVICE}))
    return found
