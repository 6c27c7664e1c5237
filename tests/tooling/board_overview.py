"""The panels of the dashboard of requests and of the parts that they wait for."""

from tests.tooling.board_parts import (
    FAILED,
    GENERATIONS,
    HERE,
    INSTANCE,
    Board,
    Panel,
    Row,
    quantile,
    rate,
)

OVERVIEW = Board(
    "overview",
    "overview",
    "Requests, errors and latency, and the parts that they wait for.",
    variables=INSTANCE,
    rows=(
        Row(
            "Requests",
            (
                Panel(
                    "Requests",
                    "reqps",
                    "Answers, by status.",
                    {"{{status}}": rate("requests_total", "status")},
                ),
                Panel(
                    "Failed requests",
                    "percentunit",
                    "Share of requests with an error of 500 to 599, over REST and MCP.",
                    {
                        "failed": f"({rate('errors_total', where=FAILED)} or vector(0)) / "
                        + rate("requests_total")
                    },
                    limit=0.005,
                ),
                Panel(
                    "Duration of generations",
                    "s",
                    "From the first byte to the last, the provider's time included.",
                    {
                        f"p{share * 100:.0f}": quantile(
                            share, "request_duration_seconds", where=GENERATIONS
                        )
                        for share in (0.5, 0.95, 0.99)
                    },
                ),
                Panel(
                    "Errors",
                    "reqps",
                    "Refusals and failures, by code.",
                    {"{{code}}": f"topk(10, {rate('errors_total', 'code')})"},
                ),
            ),
        ),
        Row(
            "Load",
            (
                Panel(
                    "In progress",
                    "short",
                    "Paid calls under way, open connections of clients, and requests in queues.",
                    {
                        "calls": f"sum(gateway_generations_in_flight{HERE})",
                        "connections": f"sum(gateway_connections_open{HERE})",
                        "waiting: {{queue}}": f"sum by (queue) (gateway_queue_waiting{HERE})",
                    },
                ),
                Panel(
                    "Time in queues",
                    "s",
                    "p95 of the requests that had to wait.",
                    {"{{queue}}": quantile(0.95, "queue_wait_seconds", "queue")},
                ),
                Panel(
                    "Load shedding",
                    "reqps",
                    "Requests refused at once, by component; connections closed by a bound.",
                    {
                        "{{gate}}": rate("shed_total", "gate"),
                        "connection: {{reason}}": rate("connections_refused_total", "reason"),
                    },
                ),
                Panel(
                    "Rate limits",
                    "reqps",
                    "Requests refused by a limit, by owner and kind; those counted without Redis.",
                    {
                        "{{owner}} {{kind}}": rate("limited_total", "owner, kind"),
                        "not shared": rate("limits_unshared_total"),
                    },
                ),
            ),
        ),
        Row(
            "Postgres",
            (
                Panel(
                    "Connections in use",
                    "percentunit",
                    "Part of each pool's connections.",
                    {
                        "{{pool}}": f"sum by (pool) (gateway_database_pool_in_use{HERE})"
                        f" / sum by (pool) (gateway_database_pool_connections{HERE})"
                    },
                    limit=0.9,
                ),
                Panel(
                    "Time until a connection",
                    "s",
                    "p95, by pool.",
                    {"{{pool}}": quantile(0.95, "database_pool_wait_seconds", "pool")},
                ),
                Panel(
                    "No connection in time",
                    "reqps",
                    "Requests that were refused for it, by pool.",
                    {"{{pool}}": rate("database_pool_timeouts_total", "pool")},
                ),
                Panel(
                    "Commits",
                    "s",
                    "Duration of the shared commits of reservations and settlements, p95.",
                    {"{{kind}}": quantile(0.95, "group_commit_duration_seconds", "kind")},
                    limit=0.5,
                ),
                Panel(
                    "Caches",
                    "percentunit",
                    "Share of look-ups that found their value.",
                    {
                        "{{cache}}": rate("cache_lookups_total", "cache", 'outcome="hit"')
                        + " / "
                        + rate("cache_lookups_total", "cache")
                    },
                ),
            ),
        ),
        Row(
            "Images and disks",
            (
                Panel(
                    "Image store",
                    "s",
                    "Duration of its operations, p95.",
                    {"{{operation}}": quantile(0.95, "image_store_duration_seconds", "operation")},
                ),
                Panel(
                    "Errors of the image store",
                    "ops",
                    "Operations that it refused or did not answer.",
                    {"{{operation}}": rate("image_store_errors_total", "operation")},
                ),
                Panel(
                    "Spool",
                    "bytes",
                    "Paid images that wait for the store, in Postgres.",
                    {"waiting": "max(gateway_image_spool_bytes)"},
                ),
                Panel(
                    "Disks",
                    "percentunit",
                    "Used part of the file system of each directory.",
                    {
                        "{{instance}} {{directory}}": f"1 - gateway_disk_free_bytes{HERE}"
                        f" / gateway_disk_size_bytes{HERE}"
                    },
                    limit=0.9,
                ),
            ),
        ),
        Row(
            "Periodic work",
            (
                Panel(
                    "Time since the last success",
                    "s",
                    "Of each periodic work, in the process where it is shortest.",
                    {
                        "{{work}}": "time() - max by (work)"
                        f" (gateway_sweep_success_timestamp_seconds{HERE})"
                    },
                    limit=600,
                ),
                Panel(
                    "Webhooks",
                    "short",
                    "Pending deliveries, and attempts a second by outcome.",
                    {
                        "waiting": "max(gateway_webhook_deliveries_waiting)",
                        "{{outcome}}": rate("webhook_attempts_total", "outcome"),
                    },
                ),
                Panel(
                    "Alarms",
                    "short",
                    "Alarms in the last hour, by kind.",
                    {"{{kind}}": "sum by (kind) (increase(gateway_alarms_total[1h]))"},
                ),
                Panel(
                    "Versions",
                    "short",
                    "Replicas of each version.",
                    {
                        "{{version}}, Python {{python}}": "count by (version, python)"
                        f" (gateway_build_info{HERE})"
                    },
                    kind="stat",
                ),
            ),
        ),
    ),
)
