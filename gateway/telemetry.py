"""Structured logs with secrets redacted, request ids, and the Prometheus metrics."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Literal

import structlog
from prometheus_client import Counter, Gauge, Histogram

from gateway.redaction import redact

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

requests_total = Counter(
    "gateway_requests_total", "Answers, by route and status", ["route", "method", "status"]
)
errors_total = Counter("gateway_errors_total", "Refusals and failures, by code", ["code"])
request_seconds = Histogram(
    "gateway_request_duration_seconds", "Request duration", ["route"], buckets=REQUEST_SECONDS
)
provider_seconds = Histogram(
    "gateway_provider_duration_seconds",
    "Duration of one provider call",
    ["provider", "outcome"],
    buckets=REQUEST_SECONDS,
)
provider_limit = Gauge(
    "gateway_provider_limit",
    "Rate limit that a provider's last answer told, by credential (owner and id) and kind",
    ["provider", "credential", "kind"],
    multiprocess_mode="mostrecent",
)
provider_limit_remaining = Gauge(
    "gateway_provider_limit_remaining",
    "Remainder of that limit",
    ["provider", "credential", "kind"],
    multiprocess_mode="mostrecent",
)
fallbacks_total = Counter(
    "gateway_fallbacks_total",
    "Calls that another model served after one that was not charged",
    ["model", "instead", "reason"],
)
cost_nano_usd_total = Counter(
    "gateway_cost_nano_usd_total", "Money settled, in 1e-9 USD", ["provider", "model", "livemode"]
)
holds_open = Gauge(
    "gateway_reservations_open",
    "Open reservations in the ledger",
    ["state"],
    multiprocess_mode="mostrecent",
)
open_nano_usd = Gauge(
    "gateway_reservations_open_nano_usd",
    "Amount of live calls whose cost is not known: held, unknown or estimated, in 1e-9 USD",
    ["state"],
    multiprocess_mode="mostrecent",
)
open_age_seconds = Gauge(
    "gateway_reservations_open_age_seconds",
    "Age of the oldest live call whose cost is not known, by state; 0 without one",
    ["state"],
    multiprocess_mode="mostrecent",
)
generations_in_flight = Gauge(
    "gateway_generations_in_flight", "Paid calls in progress", multiprocess_mode="livesum"
)
invariant_breaks = Gauge(
    "gateway_invariant_breaks", "Rows of the view invariant_break", multiprocess_mode="mostrecent"
)
alarms_total = Counter(
    "gateway_alarms_total",
    "Alarms for the operator: bound_breach, usage_missing, house_credential, …",
    ["kind"],
)
keys_refused_total = Counter(
    "gateway_keys_refused_total",
    "Rejected API keys, by kind: admin, live, test, malformed",
    ["kind"],
)
limited_total = Counter(
    "gateway_limited_total", "Requests refused by a rate or concurrency limit", ["owner", "kind"]
)
limits_unshared_total = Counter(
    "gateway_limits_unshared_total",
    "Requests counted in one process alone because Redis was unavailable or slow",
)
limits_shared = Gauge(
    "gateway_limits_shared", "1 if limits are counted in Redis", multiprocess_mode="livemin"
)
shed_total = Counter(
    "gateway_shed_total", "Requests refused by load shedding, by component", ["gate"]
)
connections_open = Gauge(
    "gateway_connections_open", "Client connections", multiprocess_mode="livesum"
)
connections_refused_total = Counter(
    "gateway_connections_refused_total",
    "Connections closed for exceeding a bound, by bound",
    ["reason"],
)
circuits_open = Gauge(
    "gateway_circuits_open",
    "Circuit breakers of providers that are open or half open",
    ["provider"],
    multiprocess_mode="livesum",
)
circuit_changes_total = Counter(
    "gateway_circuit_changes_total",
    "State changes of circuit breakers",
    ["provider", "model", "state"],
)
circuit_refused_total = Counter(
    "gateway_circuit_refused_total",
    "Requests refused by an open circuit breaker",
    ["provider", "trouble"],
)
events_total = Counter("gateway_events_total", "Webhook events created, by type", ["type"])
webhook_attempts_total = Counter(
    "gateway_webhook_attempts_total",
    "Webhook delivery attempts: delivered, failed (retried later), dead (the last attempt)",
    ["outcome"],
)
webhook_seconds = Histogram(
    "gateway_webhook_duration_seconds", "Duration of one webhook delivery attempt"
)
webhooks_waiting = Gauge(
    "gateway_webhook_deliveries_waiting",
    "Pending webhook deliveries",
    multiprocess_mode="mostrecent",
)
image_store_failing = Gauge(
    "gateway_image_store_failing",
    "1 if a worker has found the image store unavailable",
    multiprocess_mode="livemax",
)
image_spool_images = Gauge(
    "gateway_image_spool_images",
    "Paid images that wait for the image store",
    multiprocess_mode="mostrecent",
)
image_spool_bytes = Gauge(
    "gateway_image_spool_bytes",
    "Bytes of the paid images that wait for the image store",
    multiprocess_mode="mostrecent",
)
image_spool_oldest_seconds = Gauge(
    "gateway_image_spool_oldest_seconds",
    "Waiting time of the oldest paid image in the spool",
    multiprocess_mode="mostrecent",
)
image_spool_events_total = Counter(
    "gateway_image_spool_events_total",
    "Images spooled, stored from the spool, and lost: given up, or accepted by neither",
    ["event"],
)
batch_size = Histogram(
    "gateway_group_commit_batch_size",
    "Items per commit",
    ["kind"],
    buckets=(1, 2, 4, 8, 16, 32, 64),
)

request_log_dropped_total = Counter(
    "gateway_request_log_dropped_total",
    "Requests missing in the log or its table: rows_full, lines_full (the queue), unauthenticated"
    " (too many a minute), refused (a defect), clock (of another day), shutdown",
    ["reason"],
)
REQUEST_LOGGER = "gateway.requests"
"""The logger whose messages are JSON lines already, several in one message."""


def _redact_event(
    _logger: object, _method: str, event: MutableMapping[str, object]
) -> MutableMapping[str, object]:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redact(value)
    return event


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """A formatter that passes request lines through: they are many, and hold no secrets."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == REQUEST_LOGGER:
            return record.getMessage()
        return super().format(record)


def configure_logging(level: str, log_format: Literal["console", "json"]) -> None:
    """Send every log line, also the libraries', through one redacting chain to stderr."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The default shows the values of variables, some of which are secrets.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Formatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # These libraries log each request or statement at INFO.
    for noisy in (
        *("httpx2", "openai", "mcp", "sse_starlette", "alembic"),
        *("uvicorn", "uvicorn.access"),
    ):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))


def alarm(kind: str, **details: str | int | None) -> None:
    """Report a condition that needs the operator: a metric to alert on and a log line with the
    cause.
    """
    alarms_total.labels(kind).inc()
    structlog.get_logger("gateway.alarm").error("alarm", kind=kind, **details)
