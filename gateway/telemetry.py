"""Structured logs with secrets struck out, request ids, and the Prometheus metrics."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Literal

import structlog
from prometheus_client import Counter, Gauge, Histogram

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

requests_total = Counter(
    "gateway_requests_total", "Answers, by route and status", ["route", "method", "status"]
)
errors_total = Counter("gateway_errors_total", "Refusals and failures, by code", ["code"])
request_seconds = Histogram(
    "gateway_request_duration_seconds", "Time to answer", ["route"], buckets=REQUEST_SECONDS
)
provider_seconds = Histogram(
    "gateway_provider_duration_seconds",
    "Time of one provider call",
    ["provider", "outcome"],
    buckets=REQUEST_SECONDS,
)
cost_nano_usd_total = Counter(
    "gateway_cost_nano_usd_total", "Money settled, in 1e-9 USD", ["provider", "model", "livemode"]
)
holds_open = Gauge(
    "gateway_reservations_open",
    "Reservations not settled yet, as the ledger has them",
    ["state"],
    multiprocess_mode="mostrecent",
)
open_nano_usd = Gauge(
    "gateway_reservations_open_nano_usd",
    "Money of live calls whose cost is not known: held, unknown or estimated, in 1e-9 USD",
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
    "gateway_generations_in_flight", "Paid parts running", multiprocess_mode="livesum"
)
invariant_breaks = Gauge(
    "gateway_invariant_breaks", "Rows of invariant_break", multiprocess_mode="mostrecent"
)
alarms_total = Counter(
    "gateway_alarms_total",
    "What an operator must look at: bound_breach, usage_missing, house_credential, …",
    ["kind"],
)
keys_refused_total = Counter(
    "gateway_keys_refused_total",
    "API keys that opened nothing, by kind: admin, live, test, malformed",
    ["kind"],
)
limited_total = Counter("gateway_limited_total", "Requests refused by a limit", ["owner", "kind"])
limits_unshared_total = Counter(
    "gateway_limits_unshared_total",
    "Requests counted in one process alone because Redis was away or slow",
)
limits_shared = Gauge(
    "gateway_limits_shared", "Whether limits are counted in Redis (1)", multiprocess_mode="livemin"
)
shed_total = Counter(
    "gateway_shed_total", "Requests refused because there was too much to do, by where", ["gate"]
)
connections_open = Gauge(
    "gateway_connections_open", "Connections of clients", multiprocess_mode="livesum"
)
connections_refused_total = Counter(
    "gateway_connections_refused_total",
    "Connections ended before or beside their request, by the bound they exceeded",
    ["reason"],
)
circuits_open = Gauge(
    "gateway_circuits_open",
    "Circuits to providers that are open or half open",
    ["provider"],
    multiprocess_mode="livesum",
)
circuit_changes_total = Counter(
    "gateway_circuit_changes_total", "Changes of circuits' states", ["provider", "model", "state"]
)
circuit_refused_total = Counter(
    "gateway_circuit_refused_total",
    "Requests refused because a circuit was open",
    ["provider", "trouble"],
)
events_total = Counter("gateway_events_total", "Events announced, by type", ["type"])
webhook_attempts_total = Counter(
    "gateway_webhook_attempts_total",
    "Tries to deliver an event: delivered, failed (tried again later), dead (the last one)",
    ["outcome"],
)
webhook_seconds = Histogram(
    "gateway_webhook_duration_seconds", "Time of one try to deliver an event"
)
webhooks_waiting = Gauge(
    "gateway_webhook_deliveries_waiting",
    "Deliveries not arrived yet",
    multiprocess_mode="mostrecent",
)
image_store_failing = Gauge(
    "gateway_image_store_failing",
    "Whether the image store is known to be away (1), as some worker has found it",
    multiprocess_mode="livemax",
)
image_spool_images = Gauge(
    "gateway_image_spool_images",
    "Paid images that wait for the image store",
    multiprocess_mode="mostrecent",
)
image_spool_bytes = Gauge(
    "gateway_image_spool_bytes", "Bytes of these images", multiprocess_mode="mostrecent"
)
image_spool_oldest_seconds = Gauge(
    "gateway_image_spool_oldest_seconds",
    "For how long the oldest of these images has waited",
    multiprocess_mode="mostrecent",
)
image_spool_events_total = Counter(
    "gateway_image_spool_events_total",
    "Images spooled, stored from the spool, and lost: given up, or taken by neither",
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
"""Its lines are JSON already, several in one message."""

_SECRET = re.compile(
    r"\b(?:igw_(?:live|test|admin)_[0-9A-Za-z]{4,}|sk-[0-9A-Za-z_\-*.]{4,}"
    r"|whsec_[0-9A-Za-z+/=]{4,}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*)|(?i:bearer)\s+\S+"
)


def redact(text: str) -> str:
    """Strike out everything that looks like an API key or a bearer token."""
    return _SECRET.sub("[redacted]", text)


def _redact_event(
    _logger: object, _method: str, event: MutableMapping[str, object]
) -> MutableMapping[str, object]:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redact(value)
    return event


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Passes on as they are the lines of requests, which are many, and hold no secrets."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == REQUEST_LOGGER:
            return record.getMessage()
        return super().format(record)


def configure_logging(level: str, log_format: Literal["console", "json"]) -> None:
    """Send every log line, ours and the libraries', through one redacting chain to stderr."""
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
            # The default shows the values of variables, and some of those are secrets.
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
    # Libraries that report each request or statement at INFO: useful to their authors, not here.
    for noisy in (
        *("httpx2", "openai", "mcp", "sse_starlette", "alembic"),
        *("uvicorn", "uvicorn.access"),
    ):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))


def alarm(kind: str, **details: str | int | None) -> None:
    """Report what an operator must look at: a metric to alert on and a log line that says why."""
    alarms_total.labels(kind).inc()
    structlog.get_logger("gateway.alarm").error("alarm", kind=kind, **details)
