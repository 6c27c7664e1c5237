"""The queries that each page of the console makes, and its server time, on seeded data.

    python -m tests.console.timings --calls 500000 --rounds 20

A call has two ledger entries. Queries are those of SQLAlchemy, without the look-up of the session;
figures that a process computes once for many viewers (`Shared`) are computed for each round. `cpu`
is the time of the processor in this process, its client included and Postgres not: it hardly
depends on what else the machine does.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
from sqlalchemy import Engine, event

from gateway.db.embedded import EmbeddedPostgres
from tests.console.screenshots import details, pages
from tests.console_browser import session_cookies
from tests.console_portal import make_images, portal_cookies, portal_pages
from tests.console_seed import seed
from tests.harness import PostgresServer, Served, make_settings, served_gateway

BEGINS = ("SELECT set_config", "SET LOCAL ROLE", "SELECT * FROM find_console_session")
"""Statements that open a transaction or find the session: they belong to every page."""


@dataclass(frozen=True)
class Timing:
    """A page's queries, its server time and its time of the processor in milliseconds."""

    name: str
    path: str
    queries: int
    p50: float
    p95: float
    cpu: float
    kilobytes: float


@contextmanager
def counted_queries() -> Iterator[list[str]]:
    """Collect the statements that are sent until the block ends."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if not statement.startswith(BEGINS):
            sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def time_page(
    served: Served, http: httpx2.AsyncClient, name: str, path: str, *, rounds: int
) -> Timing:
    """Ask for a page again and again; it must answer 200."""
    times, spent, queries, size = [], [], 0, 0
    for _ in range(rounds + 1):
        _forget_shared(served)
        with counted_queries() as sent:
            began, cpu_began = time.perf_counter(), time.process_time()
            answer = await http.get(path)
            times.append((time.perf_counter() - began) * 1000)
            spent.append((time.process_time() - cpu_began) * 1000)
        assert answer.status_code == 200, f"{path}: {answer.status_code}"
        queries, size = len(sent), len(answer.content)
    times = sorted(times[1:])
    p95 = times[min(len(times) - 1, int(0.95 * len(times)))]
    p50, cpu = statistics.median(times), statistics.median(spent[1:])
    return Timing(name, path, queries, p50, p95, cpu, size / 1024)


def _forget_shared(served: Served) -> None:
    """Make the next overview compute its figures, as the first viewer's does."""
    state = served.app.state
    if hasattr(state, "console_watchers"):
        del state.console_watchers


async def time_pages(
    served: Served,
    cookies: Sequence[Mapping[str, object]],
    paths: Mapping[str, str],
    rounds: int,
) -> None:
    """Print a line of the table for each page."""
    jar = {str(one["name"]): str(one["value"]) for one in cookies}
    async with served.http(cookies=jar) as http:
        for name, path in paths.items():
            one = await time_page(served, http, name, path, rounds=rounds)
            print(
                f"| `{one.path}` | {one.queries} | {one.p50:.0f} | {one.p95:.0f} |"
                f" {one.cpu:.0f} | {one.kilobytes:.0f} |",
                flush=True,
            )


async def main(calls: int, rounds: int) -> None:
    """Print the table of all pages."""
    with TemporaryDirectory() as place:
        embedded = EmbeddedPostgres(Path(place) / "postgres")
        try:
            server = PostgresServer(
                embedded.owner_url("postgres").render_as_string(hide_password=False)
            )
            await server.prepare()
            settings = make_settings(
                await server.create(), Path(place) / "data", console_sign_ins_per_minute=9999
            )
            async with served_gateway(settings) as served:
                seeded = await seed(served, calls=calls)
                shown = pages() | await details(served, seeded)
                image = await make_images(served, seeded)
                print(
                    "| page | queries | p50 ms | p95 ms | cpu ms | kB |\n|---|---|---|---|---|---|"
                )
                await time_pages(served, await session_cookies(served), shown, rounds)
                portal = await portal_cookies(served, seeded)
                await time_pages(served, portal, portal_pages(image), rounds)
        finally:
            await embedded.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    asyncio.run(main(asked.calls, asked.rounds))
