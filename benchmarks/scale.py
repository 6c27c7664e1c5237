"""`make scale`: a ledger of a year with consistent books, and the time that its readers take.

The ledger is built once for each size, from a seed, in `benchmarks/.scale/<entries>`; a run that
was stopped goes on where it ended. Rows are written as the money functions write them, a hold and
a post line for each call, and are added to the sums of usage by the gateway's own function.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg

from benchmarks.rows import save
from gateway.billing import usage
from gateway.billing.usage_queries import EVERYTHING, GroupField, Period, ReportQuery
from gateway.db.embedded import EmbeddedPostgres
from gateway.db.engine import APP_ROLE, Database
from gateway.db.migrate import ensure_database, migrate

HOME = Path(__file__).parent / ".scale"
MONTHS = 12
SPENDERS = 200
"""Tenants with usage; the first has a third of it."""
EPOCH = datetime(2025, 12, 1, tzinfo=UTC)
ROLL_UP_LINES = 20_000
ROUNDS = 20
LIVE = True

TENANTS = """
INSERT INTO tenant (id, name, time_zone)
SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'tenant-' || n,
    (ARRAY['UTC', 'Europe/Vienna', 'America/New_York', 'Asia/Kolkata'])[1 + n % 4]
FROM generate_series(1, $1::int) n ON CONFLICT DO NOTHING
"""
KEYS = """
INSERT INTO api_key (id, tenant_id, root_id, name, digest, last4, livemode, scopes)
SELECT k.id, t.id, k.id, 'key-' || n, sha256(k.id::text::bytea), 'abcd', true, '{}'
FROM tenant t CROSS JOIN generate_series(1, 5) n
CROSS JOIN LATERAL (SELECT md5(t.id::text || n)::uuid AS id) k
WHERE t.name IN (SELECT 'tenant-' || n FROM generate_series(1, $1::int) n) ON CONFLICT DO NOTHING
"""
CALLS = """
INSERT INTO reservation (
    id, tenant_id, livemode, api_key_id, user_id, periods, operation, requested_model,
    served_model, provider, credential, price_id, held_nano, state, final_nano, outcome, instance,
    admitted_at, deadline_at, resolved_at, served_quality, served_size
)
SELECT (lpad(to_hex((extract(epoch FROM c.at) * 1000)::bigint), 12, '0') || '7000'
        || lpad(to_hex(32768 + c.n % 16384), 4, '0') || lpad(to_hex(c.n), 12, '0'))::uuid,
    c.tenant_id, true, md5(c.tenant_id::text || (1 + c.n % 5))::uuid, NULL, '{}',
    CASE WHEN c.n % 10 < 8 THEN 'generation' ELSE 'edit' END, c.model, c.model, 'openai',
    CASE WHEN c.n % 3 = 0 THEN 'tenant' ELSE 'house' END, 1, 40000000, 'posted',
    1000000 + (c.n * 7919) % 30000000, 'success', '00000000-0000-7000-8000-000000000000', c.at,
    c.at, c.at, CASE WHEN c.n % 2 = 0 THEN 'low' ELSE 'high' END, '1024x1024'
FROM (
    SELECT n,
        $3::timestamptz + (n - $1::bigint) * ($4::interval / ($2::bigint - $1::bigint + 1)) AS at,
        ('00000000-0000-7000-8000-' || lpad(to_hex(
            CASE WHEN n % 3 = 0 THEN 1 ELSE 1 + (n * 7919) % $5::int END), 12, '0'))::uuid
            AS tenant_id,
        (ARRAY['gpt-image-2', 'gpt-image-1-mini', 'gpt-image-1.5'])[1 + n % 3] AS model
    FROM generate_series($1::bigint, $2::bigint) n
) c
"""
LINES = """
INSERT INTO ledger (
    reservation_id, seq, at, admitted_at, tenant_id, livemode, api_key_id, user_id,
    requested_model, served_model, kind, amount_nano, requests, images, text_input_tokens,
    image_input_tokens, text_output_tokens, image_output_tokens
)
SELECT r.id, s.seq, r.admitted_at, r.admitted_at, r.tenant_id, r.livemode, r.api_key_id,
    r.user_id, r.requested_model, r.served_model, CASE s.seq WHEN 0 THEN 'hold' ELSE 'post' END,
    CASE s.seq WHEN 0 THEN r.held_nano ELSE r.final_nano END, s.seq, s.seq, 12 * s.seq, 0, 0,
    800 * s.seq
FROM reservation r CROSS JOIN (VALUES (0), (1)) s(seq)
WHERE r.admitted_at >= $1 AND r.admitted_at < $2
"""
QUEUED = """
INSERT INTO usage_pending (tenant_id, reservation_id, seq)
SELECT tenant_id, id, 1 FROM reservation WHERE admitted_at >= $1 AND admitted_at < $2
"""

Work = Callable[[Database], Awaitable[object]]


async def build(owner_url: str, *, entries: int, tenants: int) -> None:
    """Write what is missing of the ledger, a month a commit."""
    connection = await asyncpg.connect(owner_url)
    try:
        await connection.execute("SET synchronous_commit = off")
        await connection.execute("CREATE TABLE IF NOT EXISTS scale_month (month int PRIMARY KEY)")
        await connection.execute(TENANTS, tenants)
        await connection.execute(KEYS, min(SPENDERS, tenants))
        await connection.execute(PRICE)
        per_month = entries // 2 // MONTHS
        for month in range(MONTHS):
            if await connection.fetchval("SELECT 1 FROM scale_month WHERE month = $1", month):
                continue
            began = time.monotonic()
            first = month * per_month + 1
            start, length = EPOCH + timedelta(days=30 * month), timedelta(days=30)
            async with connection.transaction():
                await connection.execute(
                    CALLS, first, first + per_month - 1, start, length, min(SPENDERS, tenants)
                )
                await connection.execute(LINES, start, start + length)
                await connection.execute(QUEUED, start, start + length)
                await connection.execute("INSERT INTO scale_month VALUES ($1)", month)
            written = time.monotonic()
            lines = await add_up(connection)
            print(
                f"month {month + 1} of {MONTHS}: {per_month} calls written in"
                f" {written - began:.1f} s, {lines} lines added up in"
                f" {time.monotonic() - written:.1f} s",
                flush=True,
            )
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


PRICE = """
INSERT INTO price (id, model, effective_from, text_input_nano, image_input_nano, image_output_nano,
    text_output_nano) OVERRIDING SYSTEM VALUE
VALUES (1, 'scale', '2025-01-01', 1, 1, 1, 1) ON CONFLICT DO NOTHING
"""


async def add_up(connection: asyncpg.Connection) -> int:
    """Add every queued line to the sums, as a worker does."""
    count, found = 0, ROLL_UP_LINES
    while found:
        found = await connection.fetchval("SELECT roll_up_usage($1)", ROLL_UP_LINES)
        count += found
    return count


def reports() -> dict[str, Work]:
    """The reports to be measured."""
    large, small = (UUID(f"00000000-0000-7000-8000-{n:012x}") for n in (1, 7))
    last = EPOCH + timedelta(days=30 * (MONTHS - 1))
    month = Period(last, last + timedelta(days=30))
    year = Period(EPOCH, last + timedelta(days=30))

    def tenant(tenant_id: UUID, period: Period, *group_by: GroupField) -> Work:
        asked = ReportQuery(tenant_id, EVERYTHING, LIVE, period, group_by)

        async def work(database: Database) -> object:
            async with database.tenant(tenant_id) as session:
                return await usage.report(session, asked)

        return work

    def operator(period: Period, *group_by: GroupField) -> Work:
        asked = ReportQuery(None, EVERYTHING, LIVE, period, group_by)

        async def work(database: Database) -> object:
            async with database.operator() as session:
                return await usage.report(session, asked)

        return work

    return {
        "a tenant's month by day and model": tenant(small, month, "day", "model"),
        "the same, with a third of the ledger": tenant(large, month, "day", "model"),
        "by key and user": tenant(large, month, "key", "user"),
        "by hour": tenant(large, month, "hour"),
        "by size and quality": tenant(small, month, "size", "quality"),
        "twelve months by day, a third": tenant(large, year, "day"),
        "operator's month by tenant": operator(month, "tenant"),
        "operator's twelve months by tenant": operator(year, "tenant"),
        "operator's twelve months by month": operator(year, "month", "model"),
    }


async def measure(database: Database, rounds: int) -> list[dict[str, object]]:
    """Time each report; print p50 and p95 in milliseconds."""
    rows: list[dict[str, object]] = []
    for what, work in reports().items():
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            await work(database)
            times.append((time.perf_counter() - began) * 1000)
        times.sort()
        p50, p95 = statistics.median(times), times[int(0.95 * (len(times) - 1))]
        print(f"{what:42} {p50:9.1f} {p95:9.1f}", flush=True)
        rows.append({"what": what, "p50_ms": round(p50, 1), "p95_ms": round(p95, 1)})
    return rows


async def run(entries: int, tenants: int, rounds: int) -> None:
    """Build the ledger if needed, and print the table."""
    home = HOME / str(entries)
    home.mkdir(parents=True, exist_ok=True)
    postgres = EmbeddedPostgres(home)
    try:
        owner_url = postgres.owner_url("scale")
        await ensure_database(postgres.owner_url("postgres"), "scale")
        await migrate(owner_url, login_role=True)
        await build(
            owner_url.set(drivername="postgresql").render_as_string(hide_password=False),
            entries=entries,
            tenants=tenants,
        )
        url = owner_url.set(username=APP_ROLE).render_as_string(hide_password=False)
        database = Database(url, pool_size=4, connect_timeout_seconds=10)
        print(f"{entries} ledger entries of {tenants} tenants{'p50':>22} {'p95':>9}  (ms)")
        rows = await measure(database, rounds)
        await database.close()
        save(f"scale-{entries}", cores=os.cpu_count(), rows=rows)
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
