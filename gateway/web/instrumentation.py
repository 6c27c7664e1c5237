"""The outermost layer: request id, request record, metrics and span of every request."""

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import cache
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from prometheus_client import Counter, Histogram

from gateway import request_record, telemetry
from gateway.errors import GatewayError, InternalError, envelope, response_headers
from gateway.request_record import RequestRecord, note_error
from gateway.tracing import Trace, TracedRequest, current_parent, set_parent
from gateway.usage_metrics import count_request
from gateway.web.routes import find_route
from gateway.web.traces import RequestSpan, Traces

Message = MutableMapping[str, Any]
RequestScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[RequestScope, Receive, Send], Awaitable[None]]

UNEXPECTED = InternalError(
    "The gateway failed unexpectedly. Its log has the details under this X-Request-Id."
)
KNOWN_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"}
)
"""Of OpenTelemetry's conventions for HTTP; the others are `_OTHER`."""
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
FIRST_REFUSAL = 400
GENERATION_ID = b"x-gateway-generation-id"
CLOSE = (b"connection", b"close")
CLIENT_LEFT = "client_disconnected"
"""The error code recorded if a client disconnects before its answer is complete."""
log = structlog.get_logger(__name__)


class Instrumentation:
    """Pure ASGI middleware that observes every answer, including those of other middleware."""

    def __init__(self, app: App, traces: Traces | None = None) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Pass the request on and observe its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record, headers = _begin(scope)
        span = None if self._traces is None else _trace(self._traces, scope, record)
        started = time.perf_counter()
        status, answered, ended = int(HTTPStatus.INTERNAL_SERVER_ERROR), False, False
        failure: str | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status, answered, ended
            if message["type"] == "http.response.start":
                answered = True
                status = int(message["status"])
                message["headers"] = [*message.get("headers", ()), *headers]
                if scope["app"].state.gateway.leaving.is_set():
                    # A client that kept the connection could send into its end.
                    message["headers"].append(CLOSE)
                if status >= FIRST_REFUSAL and record.generation_id is not None:
                    message["headers"].append((GENERATION_ID, str(record.generation_id).encode()))
            elif not message.get("more_body", False):
                ended = True
            await send(message)

        request_record.set_current(record)
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # top: a defect is logged once, answered in the usual envelope
            failure = type(error).__name__
            log.exception("unexpected_error", path=find_route(scope["path"]).label)
            if not answered:
                await send_error(UNEXPECTED, send_with_id)
        finally:
            if not ended:
                record.error_code = record.error_code or CLIENT_LEFT
            _take_note(
                record,
                status,
                time.perf_counter() - started,
                is_quiet=find_route(scope["path"]).is_quiet,
            )
            _end(span, record, status if answered else None, failure)
            record.release()
            structlog.contextvars.unbind_contextvars("request_id", "trace_id")
            request_record.set_current(None)
            set_parent(None)


def _trace(traces: Traces, scope: RequestScope, record: RequestRecord) -> RequestSpan | None:
    """Begin the request's span, if it is sampled, as the parent of its steps."""
    if find_route(scope["path"]).is_quiet:
        return None
    span = traces.begin(
        TracedRequest(
            f"{record.method} {record.route}",
            scope["method"] if scope["method"] in KNOWN_METHODS else "_OTHER",
            record.route or "",
            "https" if scope["scheme"] == "https" else "http",
            scope["http_version"],
            record.request_id,
        ),
        record.trace,
    )
    if span is None:
        return None
    parent = span.parent
    set_parent(parent)
    record.trace = Trace(parent.trace_id.hex(), parent.span_id.hex(), "01")
    record.trace_id = record.trace.trace_id
    structlog.contextvars.bind_contextvars(trace_id=record.trace_id)
    return span


def _end(
    span: RequestSpan | None, record: RequestRecord, status: int | None, failure: str | None
) -> None:
    if span is None:
        return
    if status is None:
        failure = failure or CLIENT_LEFT
    elif failure is None and status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        failure = str(status)
    span.end(status, error_code=record.error_code, error_type=failure)


def _begin(scope: RequestScope) -> tuple[RequestRecord, list[tuple[bytes, bytes]]]:
    """Create the request's record, and the headers that every answer to it has."""
    given: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        if name in {b"x-request-id", b"traceparent"}:
            given.setdefault(name, []).append(value)
    record = RequestRecord.begin()
    route = find_route(scope["path"])
    record.route = route.label
    record.method = scope["method"] if scope["method"] in METHODS else "other"
    headers = [(b"x-request-id", record.request_id.encode())]
    if route.may_show_secret:
        headers.append((b"cache-control", b"no-store"))
    bound = {"request_id": record.request_id}
    if given:
        record.client_request_id = request_record.read_client_id(given.get(b"x-request-id", []))
        record.trace = request_record.read_trace(given.get(b"traceparent", []))
    if record.client_request_id is not None:
        headers.append((b"x-client-request-id", record.client_request_id.encode()))
    if record.trace is not None:
        record.trace_id = bound["trace_id"] = record.trace.trace_id
    structlog.contextvars.bind_contextvars(**bound)
    return record, headers


@cache  # finding a series by its labels takes longer than counting
def _answers(route: str | None, method: str | None, status: int) -> Counter:
    return telemetry.requests_total.labels(route, method, str(status))


@cache
def _durations(route: str | None) -> Histogram:
    return telemetry.request_seconds.labels(route)


async def send_error(
    error: GatewayError,
    send: Send,
    more_headers: Mapping[str, str] | None = None,
    *,
    content: object = None,
) -> None:
    """Answer with an error in OpenAI's envelope, or with `content` instead.

    `more_headers` replace the error's own.
    """
    note_error(error)
    body = orjson.dumps(envelope(error) if content is None else content)
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers |= response_headers(error) | dict(more_headers or {})
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})


def _take_note(record: RequestRecord, status: int, seconds: float, *, is_quiet: bool) -> None:
    record.status, record.milliseconds = status, round(seconds * 1000)
    _answers(record.route, record.method, status).inc()
    parent = current_parent()
    exemplar = None if parent is None else {"trace_id": parent.trace_id.hex()}
    _durations(record.route).observe(seconds, exemplar)
    if record.tenant_id is not None:
        count_request(record.tenant_id, livemode=bool(record.livemode), status=status)
    # Open paths are not recorded: image links, pages, probes.
    if record.sink is None and not is_quiet:
        log.debug(
            "request",
            method=record.method,
            route=record.route,
            status=status,
            milliseconds=record.milliseconds,
        )
