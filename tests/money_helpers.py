"""Helpers for money tests: requests, the books as the database has them, other processes."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx2
import structlog

from gateway.config import Settings
from gateway.domain import CostFactors
from gateway.money import parse_usd
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import (
    GPT2,
    TLS,
    GatewayProcess,
    Served,
    gateway_process,
    process_environment,
    secret_of,
)

GENERATIONS = "/v1/images/generations"
QUOTES = "/v1/images/quotes"
WAIT_SECONDS = 30
TERMS = CostFactors(1, "low", "1024x1024", 100, 0, 0, 0)
"""Of the cheap request."""


LOCK_WAITS = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
    AND wait_event_type = 'Lock' AND query LIKE $1
"""


async def until_waiting(
    watcher: asyncpg.Connection, fragment: str, *late: asyncio.Task[object]
) -> None:
    """Return once the statements of all these tasks, which contain `fragment`, wait for locks."""
    while await watcher.fetchval(LOCK_WAITS, f"%{fragment}%") < len(late):
        assert not any(one.done() for one in late), "it did not wait"


@contextmanager
def terse_log() -> Iterator[None]:
    """Shorten tracebacks in the log: structlog's rendering takes seconds and blocks the loop."""
    structlog.configure(
        processors=[
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(),
        ]
    )
    yield
    structlog.reset_defaults()


@dataclass(frozen=True)
class Booked:
    """One reservation and the lines that the ledger has for it, without those of the hold."""

    state: str
    outcome: str | None
    held_nano: int
    final_nano: int | None
    lines: tuple[tuple[str, int], ...]


def image_body(prompt: str = "a red circle", **changes: object) -> dict[str, object]:
    """A cheap request."""
    body: dict[str, object] = {"model": GPT2, "size": "1024x1024", "quality": "low"}
    return body | {"prompt": prompt} | changes


async def post_image(
    http: httpx2.AsyncClient, prompt: str = "a red circle", **changes: object
) -> httpx2.Response:
    """Ask for an image."""
    return await http.post(GENERATIONS, json=image_body(prompt, **changes))


async def quote_nano(http: httpx2.AsyncClient) -> int:
    """The most that the cheap request can cost, by the gateway's quote."""
    answer = await http.post(QUOTES, json=image_body())
    return parse_usd(answer.json()["cost_usd_max"])


def client_of(base_url: str, key: IssuedKey | str, **options: object) -> httpx2.AsyncClient:
    """A client with as many connections as it needs."""
    return httpx2.AsyncClient(
        base_url=base_url,
        headers={"Authorization": f"Bearer {secret_of(key)}"},
        timeout=110,
        verify=TLS,
        limits=httpx2.Limits(max_connections=None),
        **options,  # type: ignore[arg-type]  # passed through
    )


def statuses(answers: Sequence[httpx2.Response]) -> dict[int, int]:
    """The number of answers with each status."""
    return dict(Counter(answer.status_code for answer in answers))


async def books(served: Served) -> list[Booked]:
    """Every reservation, oldest first."""
    rows = await served.owner_sql(
        "SELECT r.state, r.outcome, r.held_nano, r.final_nano, coalesce(array_agg(l.kind || ' ' ||"
        " l.amount_nano ORDER BY l.seq) FILTER (WHERE l.kind <> 'hold'), '{}') AS lines"
        " FROM reservation r JOIN ledger l ON l.reservation_id = r.id GROUP BY r.tenant_id, r.id"
        " ORDER BY r.admitted_at, r.id"
    )
    return [
        Booked(
            row.state,
            row.outcome,
            row.held_nano,
            row.final_nano,
            tuple((line.split(" ")[0], int(line.split(" ")[1])) for line in row.lines),
        )
        for row in rows
    ]


async def count_states(served: Served) -> dict[str, int]:
    """The number of reservations in each state."""
    rows = await served.owner_sql("SELECT state, count(*) AS number FROM reservation GROUP BY 1")
    return {str(row.state): int(row.number) for row in rows}


async def eventually(check: Callable[[], Awaitable[bool]], seconds: float = WAIT_SECONDS) -> None:
    """Return once `check` holds; most looks are queries, so the loop is not a busy one."""
    async with asyncio.timeout(seconds):
        while not await check():  # noqa: ASYNC110 - Postgres and the gateway tell no test
            # A check of memory alone never yields: the task that is to change it needs a turn.
            await asyncio.sleep(0)


async def until_states(
    served: Served, expected: dict[str, int], seconds: float = WAIT_SECONDS
) -> None:
    """Wait until the reservations are in exactly these states."""

    async def reached() -> bool:
        return await count_states(served) == expected

    try:
        await eventually(reached, seconds)
    except TimeoutError:
        assert await count_states(served) == expected


async def make_late(served: Served, *, by: str = "10 seconds") -> None:
    """Move the deadlines of open reservations into the past."""
    await served.owner_sql(
        "UPDATE reservation SET deadline_at = clock_timestamp() - CAST(:by AS text)::interval"
        " WHERE state IN ('held', 'unknown')",
        by=by,
    )


async def age_unknown(served: Served) -> None:
    """Make open reservations two hours old and late: one sweep then posts their estimate."""
    await make_late(served)
    await served.owner_sql(
        "UPDATE reservation SET admitted_at = admitted_at - interval '2 hours'"
        " WHERE state IN ('held', 'unknown')"
    )


async def budget_rows(served: Served) -> list[tuple[str, int, int, int]]:
    """Every budget period: owner, limit, spent, held (nano-USD)."""
    rows = await served.owner_sql(
        "SELECT * FROM (SELECT CASE WHEN b.api_key_id IS NOT NULL THEN 'key' WHEN b.user_id IS NOT"
        " NULL THEN 'user' ELSE 'tenant' END AS owner, b.limit_nano, p.spent_nano, p.held_nano"
        " FROM budget_period p JOIN budget b ON b.id = p.budget_id ORDER BY p.id) own"
        " UNION ALL SELECT * FROM (SELECT 'house', b.limit_nano, sum(p.spent_nano)::bigint,"
        " sum(p.held_nano)::bigint FROM house_budget_period p"
        " JOIN house_budget b ON b.id = p.budget_id GROUP BY b.id, p.period_start"
        " ORDER BY min(p.id)) house"
    )
    return [(row.owner, row.limit_nano, row.spent_nano, row.held_nano) for row in rows]


async def deadlocks(served: Served) -> int:
    """The number of deadlocks that Postgres has broken in this test's database."""
    await served.owner_sql("SELECT pg_stat_clear_snapshot()")
    rows = await served.owner_sql(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    return int(rows[0][0])


@contextmanager
def gateway_processes(
    settings: Settings, folder: Path, count: int, **environment: str
) -> Iterator[list[GatewayProcess]]:
    """Several gateways on one database."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                gateway_process(
                    process_environment(settings) | environment,
                    folder / f"gateway-{index}-{time.monotonic_ns()}.log",
                )
            )
            for index in range(count)
        ]
