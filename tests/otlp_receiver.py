"""A small OTLP receiver on loopback: it keeps the spans that are sent to it."""

import gzip
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.serving import serving


@dataclass(frozen=True)
class Span:
    """A span as it arrived; ids as hexadecimal text, no parent as an empty one."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, str | int]
    events: int
    started_ns: int
    ended_ns: int
    is_failed: bool


@dataclass
class Receiver:
    """The received spans, the attributes of their services, and the bodies as they came."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    services: list[dict[str, str | int]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def take(self, request: Request) -> Response:
        """Keep the spans of one export."""
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services.append(_attributes(resource.resource.attributes))
            self.spans += [_span(span) for scope in resource.scope_spans for span in scope.spans]
        return Response(media_type="application/x-protobuf")

    def named(self, name: str) -> Span:
        """The only span of a name."""
        [found] = [span for span in self.spans if span.name == name]
        return found

    def children(self, parent: Span) -> list[str]:
        """The names of the spans directly below one, in the order of their beginning."""
        found = [span for span in self.spans if span.parent_id == parent.span_id]
        return [span.name for span in sorted(found, key=lambda span: span.started_ns)]


def _span(sent: Any) -> Span:
    return Span(
        name=sent.name,
        kind=sent.kind,
        trace_id=sent.trace_id.hex(),
        span_id=sent.span_id.hex(),
        parent_id=sent.parent_span_id.hex(),
        attributes=_attributes(sent.attributes),
        events=len(sent.events),
        started_ns=sent.start_time_unix_nano,
        ended_ns=sent.end_time_unix_nano,
        is_failed=sent.status.code == 2,
    )


def _attributes(sent: Iterator[KeyValue]) -> dict[str, str | int]:
    return {pair.key: _value(pair.value) for pair in sent}


def _value(sent: AnyValue) -> str | int:
    return sent.int_value if sent.HasField("int_value") else sent.string_value


@asynccontextmanager
async def running_receiver(port: int = 0) -> AsyncIterator[Receiver]:
    """Receive until the end of the block, on this port or a free one."""
    receiver = Receiver()
    app = Starlette(routes=[Route("/v1/traces", receiver.take, methods=["POST"])])
    async with serving(app, port=port) as url:
        receiver.url = url
        yield receiver
