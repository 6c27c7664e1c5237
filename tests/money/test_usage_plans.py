"""Plans of usage reports: the planner's estimates, and what is read on a large ledger."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

import asyncpg
import httpx2
import pytest
from sqlalchemy import Executable, Select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler

from benchmarks.scale_ledger import LARGE, LAST_MONTH, SMALL, WHOLE, build
from gateway.billing.usage import parse_period
from gateway.billing.usage_queries import EVERYTHING, GroupField, ReportQuery, settled
from gateway.config import Settings
from tests.admin_helpers import admin
from tests.harness import Served, run_sql, served_gateway
from tests.money_helpers import image_body, post_image

ENTRIES, TENANTS = 60_000, 400
FULL_ENTRIES = 1_000_000
LARGE_ROWS = 50_000
"""A table of fewer rows may be read from end to end."""
MOST_PART = 0.1
"""The part of a large table's rows that all statements of the test may read in scans of it."""
FEW_ROWS = 100
"""Estimates of fewer rows are not judged: they decide nothing."""
TENANTS_GROUPS: list[tuple[GroupField, ...]] = [
    *(("day", "model"), ("key", "user"), ("hour",), ("quality",))
]
OPERATORS_GROUPS: list[tuple[GroupField, ...]] = [
    *(("tenant",), ("month", "model"), ("key",), ("hour",))
]


class Explained(Executable, ClauseElement):
    """A query that is run and whose plan is returned."""

    inherit_cache = False

    def __init__(self, statement: Select[Any]) -> None:
        self.statement = statement


@compiles(Explained)
def _explained(element: Explained, compiler: SQLCompiler, **options: Any) -> str:
    return f"EXPLAIN (ANALYZE, FORMAT JSON) {compiler.process(element.statement, **options)}"


def scans_of(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The scans of tables in a plan that were executed."""
    if "Relation Name" in plan and plan["Actual Loops"]:
        yield plan
    for inner in plan.get("Plans", ()):
        yield from scans_of(inner)


async def misjudged(session: AsyncSession, query: ReportQuery) -> list[tuple[str, int, int]]:
    """The scans whose rows were estimated at less than a third or more than three times."""
    found = await session.execute(Explained(settled(query, limit=10_000)))
    [top] = found.scalar_one()
    judged = [
        (scan["Relation Name"], int(scan["Plan Rows"]), int(scan["Actual Rows"]))
        for scan in scans_of(top["Plan"])
    ]
    return [
        (name, estimate, actual)
        for name, estimate, actual in judged
        if max(estimate, actual) >= FEW_ROWS
        and max(estimate, actual) > 3 * max(1, min(estimate, actual))
    ]


def asked(
    tenant_id: UUID | None, bounds: dict[str, str], *group_by: GroupField, zone: str | None = None
) -> ReportQuery:
    period = parse_period(bounds["start"], bounds["end"], "UTC")
    return ReportQuery(
        tenant_id, EVERYTHING, livemode=True, period=period, group_by=group_by, zone=zone
    )


@pytest.mark.timeout(300)
async def test_the_planner_estimates_what_reports_read_within_a_factor_of_three(
    settings: Settings, database: str
) -> None:
    await build(database.replace("+asyncpg", ""), entries=ENTRIES, tenants=TENANTS, images=100)
    async with served_gateway(settings) as served:
        wrong: dict[str, object] = {}
        for tenant_id in (UUID(LARGE), UUID(SMALL)):
            for groups in TENANTS_GROUPS:
                async with served.gateway.database.tenant(tenant_id) as session:
                    query = asked(tenant_id, LAST_MONTH, *groups)
                    if found := await misjudged(session, query):
                        wrong[f"{tenant_id} {groups}"] = found
        for bounds in (LAST_MONTH, WHOLE):
            for groups in OPERATORS_GROUPS:
                async with served.gateway.database.operator() as session:
                    query = asked(None, bounds, *groups)
                    if found := await misjudged(session, query):
                        wrong[f"operator {groups}"] = found
        await served.check_invariants()
    assert wrong == {}


async def reservations_read(session: AsyncSession, query: ReportQuery) -> int:
    """The rows of reservations that a report reads."""
    found = await session.execute(Explained(settled(query, limit=10_000)))
    [top] = found.scalar_one()
    return sum(
        int((scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)) * scan["Actual Loops"])
        for scan in scans_of(top["Plan"])
        if scan["Relation Name"] == "reservation"
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Kolkata"])
async def test_a_report_by_key_reads_single_calls_only_where_days_are_cut(
    settings: Settings, database: str, zone: str | None
) -> None:
    """The tenants' days are of four zones, and none of those is asked for by the last case."""
    await build(database.replace("+asyncpg", ""), entries=ENTRIES, tenants=TENANTS, images=100)
    async with served_gateway(settings) as served:
        for tenant_id in (None, UUID(LARGE)):
            query = asked(tenant_id, WHOLE, "key", "user", zone=zone)
            database_of = served.gateway.database
            opened = database_of.operator() if tenant_id is None else database_of.tenant(tenant_id)
            async with opened as session:
                assert await reservations_read(session, query) < ENTRIES / 2 * MOST_PART


async def read_in_scans(url: str) -> dict[str, float]:
    """The part of each large table's rows that was read in sequential scans, several scans added.

    Partitions count as their table.

    A connection reports what it has read when it ends; before that, this waits.
    """
    connection = await asyncpg.connect(url)
    try:
        while await connection.fetchval(OTHERS):  # noqa: ASYNC110 - Postgres tells no one
            await asyncio.sleep(0)
        rows = await connection.fetch(SCANNED, LARGE_ROWS)
    finally:
        await connection.close()
    return {row["relname"]: row["part"] for row in rows}


OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
SCANNED = """
SELECT coalesce(pg_partition_root(relid), relid)::regclass::text AS relname,
    sum(seq_tup_read)::float8 / sum(n_live_tup) AS part
FROM pg_stat_user_tables GROUP BY 1 HAVING sum(n_live_tup) > $1
"""


CHECKED = "SELECT remember_checked(NULL, '{}')"
"""Once a week the books are checked as a whole, which reads everything; not in this test."""


async def use(served: Served) -> None:
    """Ask for every kind of report and page, buy images, and let the periodic work pass."""
    bounds = httpx2.QueryParams(LAST_MONTH)
    tenants = [served.http(await served.key(tenant_id=UUID(one))) for one in (LARGE, SMALL)]
    paths = [
        *(f"/v1/usage?{bounds}&group_by={group}" for group in ("day,model", "key,user", "hour")),
        f"/v1/usage?{bounds}&group_by=status,size",
        *(f"/v1/usage?{httpx2.QueryParams(WHOLE)}&group_by={group}" for group in ("day", "key")),
        *("/v1/images", "/v1/images?model=gpt-image-2", "/v1/requests", "/v1/budgets"),
    ]
    for http in tenants:
        for path in paths:
            assert (await http.get(path)).status_code == 200
        keyed = {"Idempotency-Key": "one"}
        for _ in range(2):
            answer = await http.post("/v1/images/generations", json=image_body(), headers=keyed)
            assert answer.status_code == 200
        assert (await post_image(http)).status_code == 200
        await http.aclose()
    async with admin(served) as http:
        for group in ("tenant", "day", "month,model", "key,user", "key&time_zone=UTC"):
            assert (await http.get(f"/usage?{bounds}&group_by={group}")).status_code == 200
        for path in ("/tenants", "/requests", "/reconciliation", "/audit"):
            assert (await http.get(path)).status_code == 200
    await served.sweep()


@pytest.mark.full
@pytest.mark.timeout(1800)
async def test_nothing_reads_a_large_table_from_end_to_end(
    settings: Settings, database: str
) -> None:
    """Every report, page, call and sweep on a million ledger entries."""
    url = database.replace("+asyncpg", "")
    await build(url, entries=FULL_ENTRIES, tenants=1_000, images=300_000)
    await run_sql(database, CHECKED)
    before = await read_in_scans(url)
    assert {"ledger", "reservation", "usage_slot", "image"} <= before.keys()
    async with served_gateway(settings) as served:
        await use(served)
    after = await read_in_scans(url)
    parts = {table: after[table] - part for table, part in before.items()}
    assert {table: part for table, part in parts.items() if part > MOST_PART} == {}
