"""The Prometheus metrics, and alarms. `make generated` lists them in docs/metrics.md."""

import structlog
from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

# Each would double the number of series; a counter that begins anew is seen without them.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no annotations

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
WAIT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

requests_total = Counter(
    "gateway_requests_total", "Answers, by route and status", ["route", "method", "status"]
)
errors_total = Counter(
    "gateway_errors_total",
    "Refusals and failures over REST and MCP, by code and the status that it stands for",
    ["code", "status"],
)
request_seconds = Histogram(
    "gateway_request_duration_seconds", "Request duration", ["route"], buckets=REQUEST_SECONDS
)
provider_seconds = Histogram(
    "gateway_provider_duration_seconds",
    "Duration of the paid calls of a request to one model, by outcome",
    ["provider", "model", "outcome"],
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
images_total = Counter(
    "gateway_images_total", "Images made and paid for", ["provider", "model", "livemode"]
)
tokens_total = Counter(
    "gateway_tokens_total",
    "Tokens that providers reported: text_input, image_input, text_output, image_output",
    ["provider", "model", "livemode", "kind"],
)
cost_nano_usd_total = Counter(
    "gateway_cost_nano_usd_total", "Money settled, in 1e-9 USD", ["provider", "model", "livemode"]
)
tenant_requests_total = Counter(
    "gateway_tenant_requests_total",
    "Answers to a tenant's requests, by class of status: 2xx, 4xx, 5xx",
    ["tenant", "livemode", "status"],
)
tenant_images_total = Counter(
    "gateway_tenant_images_total", "Images made for a tenant", ["tenant", "livemode"]
)
tenant_tokens_total = Counter(
    "gateway_tenant_tokens_total",
    "Tokens of a tenant's calls: input, output",
    ["tenant", "livemode", "kind"],
)
tenant_cost_nano_usd_total = Counter(
    "gateway_tenant_cost_nano_usd_total",
    "Money settled for a tenant, in 1e-9 USD",
    ["tenant", "livemode"],
)
tenant_budget_used_ratio = Gauge(
    "gateway_tenant_budget_used_ratio",
    "Spent and held part of a tenant's own budget in its current period, live calls; 1 is all",
    ["tenant", "window"],
    multiprocess_mode="mostrecent",
)
house_budget_used_nano_usd = Gauge(
    "gateway_house_budget_used_nano_usd",
    "Spent and held amount of the operator's budget in its current period, in 1e-9 USD",
    ["window"],
    multiprocess_mode="mostrecent",
)
house_budget_limit_nano_usd = Gauge(
    "gateway_house_budget_limit_nano_usd",
    "Limit in force of the operator's budget, in 1e-9 USD",
    ["window"],
    multiprocess_mode="mostrecent",
)
settlements_waiting = Gauge(
    "gateway_settlements_waiting",
    "Settlements of ended calls that Postgres has not acknowledged",
    multiprocess_mode="livesum",
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
queue_waiting = Gauge(
    "gateway_queue_waiting", "Requests in a queue", ["queue"], multiprocess_mode="livesum"
)
queue_wait_seconds = Histogram(
    "gateway_queue_wait_seconds",
    "Time in a queue, of those that had to wait and were admitted",
    ["queue"],
    buckets=WAIT_SECONDS,
)
pool_connections = Gauge(
    "gateway_database_pool_connections",
    "Most connections to Postgres of a pool",
    ["pool"],
    multiprocess_mode="livesum",
)
pool_in_use = Gauge(
    "gateway_database_pool_in_use",
    "Connections of a pool that are in use",
    ["pool"],
    multiprocess_mode="livesum",
)
pool_wait_seconds = Histogram(
    "gateway_database_pool_wait_seconds",
    "Time until a connection of a pool was available, opening it included",
    ["pool"],
    buckets=WAIT_SECONDS,
)
pool_timeouts_total = Counter(
    "gateway_database_pool_timeouts_total",
    "Requests that found no connection of a pool, or of their tenant's share of it, in time",
    ["pool"],
)
cache_lookups_total = Counter(
    "gateway_cache_lookups_total", "Look-ups in a cache: hit, miss", ["cache", "outcome"]
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
image_store_seconds = Histogram(
    "gateway_image_store_duration_seconds",
    "Duration of an operation of the image store that succeeded",
    ["operation"],
    buckets=WAIT_SECONDS,
)
image_store_errors_total = Counter(
    "gateway_image_store_errors_total",
    "Operations that the image store refused or did not answer",
    ["operation"],
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
batch_seconds = Histogram(
    "gateway_group_commit_duration_seconds",
    "Duration of one shared commit",
    ["kind"],
    buckets=WAIT_SECONDS,
)
sweep_success_seconds = Gauge(
    "gateway_sweep_success_timestamp_seconds",
    "Unix time at which periodic work last ended without an error; at first that of the start",
    ["work"],
    multiprocess_mode="mostrecent",
)
sweep_failures_total = Counter(
    "gateway_sweep_failures_total", "Runs of periodic work that failed or were put off", ["work"]
)
disk_free_bytes = Gauge(
    "gateway_disk_free_bytes",
    "Bytes free for the gateway on the file system of data, images, journal or temporary files",
    ["directory"],
    multiprocess_mode="mostrecent",
)
disk_size_bytes = Gauge(
    "gateway_disk_size_bytes",
    "Size of that file system",
    ["directory"],
    multiprocess_mode="mostrecent",
)
certificate_expiry_seconds = Gauge(
    "gateway_certificate_expiry_timestamp_seconds",
    "Unix time at which a configured certificate expires",
    ["certificate"],
    multiprocess_mode="mostrecent",
)
secret_created_seconds = Gauge(
    "gateway_secret_created_timestamp_seconds",
    "Unix time at which the newest version of a secret of the gateway was made",
    ["secret"],
    multiprocess_mode="mostrecent",
)
spans_dropped_total = Counter(
    "gateway_spans_dropped_total", "Spans of traces that the collector did not take in time"
)
build_info = Gauge(
    "gateway_build_info",
    "1, with the version of the gateway and of Python",
    ["version", "python"],
    multiprocess_mode="mostrecent",
)

request_log_dropped_total = Counter(
    "gateway_request_log_dropped_total",
    "Requests missing in the log or its table: rows_full, lines_full (the queue), unauthenticated"
    " (too many a minute), refused (a defect), clock (of another day), shutdown",
    ["reason"],
)


def alarm(kind: str, **details: str | int | None) -> None:
    """Report a condition that needs the operator: a metric to alert on and a log line with the
    cause.
    """
    alarms_total.labels(kind).inc()
    structlog.get_logger("gateway.alarm").error("alarm", kind=kind, **details)
