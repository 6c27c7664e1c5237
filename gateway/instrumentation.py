"""The outermost layer: every request gets an id, a log line and its place in the metrics."""

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any

import orjson
import structlog

from gateway import telemetry
from gateway.errors import GatewayError, InternalError, envelope, response_headers

Message = MutableMapping[str, Any]
RequestScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[RequestScope, Receive, Send], Awaitable[None]]

ROUTES = frozenset(
    {
        "/v1/images",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/variations",
        "/v1/images/quotes",
        "/generate_image",
        "/edit_image",
        "/v1/models",
        "/v1/usage",
        "/v1/budgets",
        "/mcp",
        "/health",
        "/ready",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/.well-known/oauth-protected-resource",
        "/.well-known/oauth-protected-resource/mcp",
    }
)
ROUTE_PREFIXES = (
    "/docs-assets/",
    "/v1/images/",
    "/v1/models/",
    "/v1/credentials/",
    "/images/",
    "/admin/",
)
UNEXPECTED = InternalError(
    "The gateway failed in an unexpected way. X-Request-Id names this request in its log."
)
QUIET_ROUTES = frozenset({"/health", "/ready", "/metrics"})
log = structlog.get_logger(__name__)


class Instrumentation:
    """Pure ASGI: sees every answer, whoever gives it."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Pass the request on and take note of its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = telemetry.new_request_id()
        header = (b"x-request-id", request_id.encode())
        started = time.perf_counter()
        status, answered = int(HTTPStatus.INTERNAL_SERVER_ERROR), False

        async def send_with_id(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                answered = True
                status = int(message["status"])
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=request_id)
        scope.setdefault("state", {})["request_id"] = request_id
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # top: a defect is logged once, and answered like every other error
            log.exception("unexpected_error", path=route_label(scope["path"]))
            if not answered:
                await send_error(UNEXPECTED, send_with_id)
        finally:
            _take_note(scope, status, time.perf_counter() - started)
            structlog.contextvars.unbind_contextvars("request_id")


async def send_error(
    error: GatewayError,
    send: Send,
    more_headers: Mapping[str, str] | None = None,
    *,
    content: object = None,
) -> None:
    """Answer with an error in OpenAI's envelope, or as `content` says it.

    `more_headers` replace those of its own.
    """
    telemetry.errors_total.labels(error.code).inc()
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


def route_label(path: str) -> str:
    """A label from a closed set: what clients invent must not grow the metrics."""
    if path in ROUTES:
        return path
    return next((f"{p}{{id}}" for p in ROUTE_PREFIXES if path.startswith(p)), "other")


def _take_note(scope: RequestScope, status: int, seconds: float) -> None:
    route = route_label(scope["path"])
    method = (
        scope["method"] if scope["method"] in {"GET", "POST", "PUT", "PATCH", "DELETE"} else "other"
    )
    telemetry.requests_total.labels(route, method, str(status)).inc()
    telemetry.request_seconds.labels(route).observe(seconds)
    if route not in QUIET_ROUTES:
        log.debug(
            "request", method=method, route=route, status=status, milliseconds=round(seconds * 1000)
        )
