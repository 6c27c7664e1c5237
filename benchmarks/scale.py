"""`make scale`: how long reports, pages, sweeps, `doctor` and the start take on a large ledger.

The ledger is kept in `benchmarks/.scale/<entries>`. A gateway serves it, so that each row is what
a client waits for. In the end eight operators' reports run beside a tenant's requests.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.rows import save
from benchmarks.scale_ledger import LARGE, LAST_MONTH, SMALL, WHOLE, build
from benchmarks.servers import gateway, gateway_environment, stub
from gateway.billing import ledger, usage_sums
from gateway.db.embedded import DATABASE_NAME, EmbeddedPostgres
from gateway.db.engine import APP_ROLE, Database
from gateway.db.migrate import ensure_database, migrate
from gateway.library.retention import expire_beyond_caps

HOME = Path(__file__).parent / ".scale"
ROUNDS = 20
OPERATORS = 8
REQUESTS_BESIDE = 300
WARM_UP = 20
IMAGES = 1_400_000
TIMEOUT_SECONDS = 60.0

Work = Callable[[], Awaitable[object]]


class Table:
    """The rows measured so far."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, what: str, times: list[float]) -> float:
        """Add a row of times in seconds, print it, and return the 95th percentile."""
        times = sorted(times)
        p50, p95 = statistics.median(times), times[int(0.95 * (len(times) - 1))]
        print(f"{what:52} {p50 * 1000:9.1f} {p95 * 1000:9.1f}", flush=True)
        self.rows.append(
            {"what": what, "p50_ms": round(p50 * 1000, 1), "p95_ms": round(p95 * 1000, 1)}
        )
        return p95

    async def time(self, what: str, work: Work, rounds: int) -> None:
        """Time some work again and again."""
        self.add(what, [await seconds_of(work) for _ in range(rounds)])


async def seconds_of(work: Work) -> float:
    """Measure the seconds that some work takes."""
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


def asking(http: httpx2.AsyncClient, path: str, **parameters: str) -> Work:
    """Make the work of one GET request, which must succeed."""

    async def work() -> None:
        (await http.get(path, params=parameters)).raise_for_status()

    return work


def tenants_rows(small: httpx2.AsyncClient, large: httpx2.AsyncClient) -> dict[str, Work]:
    """Make the reports and pages of a tenant, and of the one with a third of the ledger."""
    return {
        "a tenant's month by day and model": asking(
            small, "/v1/usage", group_by="day,model", **LAST_MONTH
        ),
        "a third of it: month by day and model": asking(
            large, "/v1/usage", group_by="day,model", **LAST_MONTH
        ),
        "a third of it: by key and user": asking(
            large, "/v1/usage", group_by="key,user", **LAST_MONTH
        ),
        "a third of it: by hour": asking(large, "/v1/usage", group_by="hour", **LAST_MONTH),
        "a third of it: twelve months by day": asking(large, "/v1/usage", group_by="day", **WHOLE),
        "a third of it: twelve months by key": asking(large, "/v1/usage", group_by="key", **WHOLE),
        "a third of it: history of images": asking(large, "/v1/images", limit="100"),
        "a third of it: history of one model": asking(
            large, "/v1/images", limit="100", model="gpt-image-2"
        ),
        "a third of it: budgets": asking(large, "/v1/budgets"),
        "a third of it: requests": asking(large, "/v1/requests", limit="100"),
        "a tenant's month by size and quality": asking(
            small, "/v1/usage", group_by="size,quality", **LAST_MONTH
        ),
        "a tenant's month by status": asking(small, "/v1/usage", group_by="status", **LAST_MONTH),
    }


def operators_rows(http: httpx2.AsyncClient) -> dict[str, Work]:
    """Make the reports and pages of operators."""
    usage = "/admin/v1/usage"
    return {
        "operator's month by tenant": asking(http, usage, group_by="tenant", **LAST_MONTH),
        "operator's month by day and model": asking(
            http, usage, group_by="day,model", **LAST_MONTH
        ),
        "operator's twelve months by tenant": asking(http, usage, group_by="tenant", **WHOLE),
        "operator's twelve months by month and model": asking(
            http, usage, group_by="month,model", **WHOLE
        ),
        "operator's twelve months by day": asking(http, usage, group_by="day", **WHOLE),
        "operator's month by key and user": asking(http, usage, group_by="key,user", **LAST_MONTH),
        "operator's tenants": asking(http, "/admin/v1/tenants", limit="100"),
        "operator's requests": asking(http, "/admin/v1/requests", limit="100"),
        "operator's open calls": asking(
            http, "/admin/v1/reconciliation/calls", state="unknown", limit="100"
        ),
        "operator's audit": asking(http, "/admin/v1/audit", limit="100"),
    }


async def new_key(operator: httpx2.AsyncClient, tenant_id: str, *, livemode: bool = True) -> str:
    """Make a key of a tenant and return its secret."""
    body = {"name": f"scale {time.time_ns()}", "livemode": livemode}
    answer = await operator.post(f"/admin/v1/tenants/{tenant_id}/keys", json=body)
    secret: str = answer.raise_for_status().json()["secret"]
    return secret


async def measure_beside(table: Table, operator: httpx2.AsyncClient, tenant: Work) -> float:
    """Time a tenant's requests alone and beside operators' reports; return the ratio of the p95."""
    alone = [await seconds_of(tenant) for _ in range(REQUESTS_BESIDE)]
    report = operators_rows(operator)["operator's twelve months by tenant"]
    is_done = asyncio.Event()
    reported: list[float] = []

    async def report_on() -> None:
        while not is_done.is_set():
            reported.append(await seconds_of(report))

    running = [asyncio.create_task(report_on()) for _ in range(OPERATORS)]
    beside = [await seconds_of(tenant) for _ in range(REQUESTS_BESIDE)]
    is_done.set()
    await asyncio.gather(*running)
    before = table.add("a tenant's images, alone", alone)
    ratio = table.add(f"  beside {OPERATORS} operators' reports", beside) / before
    table.add("  those reports", reported)
    print(f"{'  ratio of the p95':52} {ratio:19.2f}")
    return ratio


async def measure_served(table: Table, folder: Path, rounds: int) -> float:
    """Measure all that a served gateway answers."""
    with stub(folder) as stub_port, gateway(stub_port, folder) as (port, _, seconds):
        table.add("start to ready", [seconds])
        keys = json.loads((folder / "data" / "quickstart.json").read_text())
        async with AsyncExitStack() as stack:

            async def client(key: str) -> httpx2.AsyncClient:
                return await stack.enter_async_context(
                    httpx2.AsyncClient(
                        base_url=f"http://127.0.0.1:{port}",
                        headers={"Authorization": f"Bearer {key}"},
                        timeout=TIMEOUT_SECONDS,
                    )
                )

            operator = await client(keys["admin_key"])
            small, large = [
                await client(await new_key(operator, tenant_id)) for tenant_id in (SMALL, LARGE)
            ]
            for what, work in (tenants_rows(small, large) | operators_rows(operator)).items():
                await table.time(what, work, rounds)
            sandbox = await client(await new_key(operator, SMALL, livemode=False))

            refused: list[int] = []

            async def buy() -> None:
                body: dict[str, Any] = {
                    "model": "gpt-image-2",
                    "prompt": "a red circle",
                    "size": "1024x1024",
                    "quality": "low",
                }
                answer = await sandbox.post("/v1/images/generations", json=body)
                if answer.is_error:
                    refused.append(answer.status_code)

            for _ in range(WARM_UP):
                await buy()
            refused.clear()
            ratio = await measure_beside(table, operator, buy)
            print(f"  refused of {2 * REQUESTS_BESIDE} images: {refused}")
            return ratio


async def doctor(folder: Path) -> None:
    """Run `gateway doctor`."""
    environment = gateway_environment(1, folder) | {"PATH": os.environ["PATH"]}
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "doctor", "--json"),
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
    )
    await running.wait()


async def measure_sweeps(table: Table, database: Database, rounds: int) -> None:
    """Measure periodic work that finds nothing to do, and the whole check of the books."""
    await table.time("sweep: usage", lambda: usage_sums.roll_up(database), rounds)
    await table.time(
        "sweep: images beyond their tenants' caps", lambda: expire_beyond_caps(database), rounds
    )
    books = lambda: ledger.invariant_breaks(database, timeout_seconds=900)  # noqa: E731
    await table.time("invariants of the whole ledger", books, 1)


async def run(entries: int, tenants: int, rounds: int) -> None:
    """Build the ledger if needed, and print the table."""
    folder = HOME / str(entries)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = Table()
    postgres = EmbeddedPostgres(folder / "data")
    try:
        owner_url = postgres.owner_url(DATABASE_NAME)
        await ensure_database(postgres.owner_url("postgres"), DATABASE_NAME)
        await migrate(owner_url, login_role=True)
        await build(
            owner_url.set(drivername="postgresql").render_as_string(hide_password=False),
            entries=entries,
            tenants=tenants,
            images=min(IMAGES, entries // 4),
        )
        print(f"{entries} ledger entries of {tenants} tenants{'p50':>32} {'p95':>9}  (ms)")
        ratio = await measure_served(table, folder, rounds)
        await table.time("`gateway doctor`", lambda: doctor(folder), 1)
        url = owner_url.set(username=APP_ROLE).render_as_string(hide_password=False)
        database = Database(url, pool_size=4, connect_timeout_seconds=10)
        await measure_sweeps(table, database, rounds)
        await database.close()
        save(f"scale-{entries}", cores=os.cpu_count(), rows=table.rows, beside=round(ratio, 2))
    finally:
        await postgres.close()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="make scale", description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--tenants", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    asyncio.run(run(asked.entries, asked.tenants, asked.rounds))


if __name__ == "__main__":
    main()
