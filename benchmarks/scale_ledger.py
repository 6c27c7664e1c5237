"""A ledger of a year with consistent books, written as the money functions write it.

It is built once for each size, from a seed; a run that was stopped goes on where it ended. Each
call has a hold and a post line. The sums of usage are written a month at once, which takes a tenth
of the time of the gateway's own function; the check of the books compares them with the lines.
"""

import time
from datetime import UTC, datetime, timedelta

import asyncpg

MONTHS = 12
SPENDERS = 200
"""Tenants with usage; the first has a third of it."""
EPOCH = datetime(2025, 12, 1, tzinfo=UTC)
LARGE, SMALL = (f"00000000-0000-7000-8000-{number:012x}" for number in (1, 7))
"""A tenant with a third of the ledger, and one of the others."""
LAST_MONTH = {"start": "2026-10-27", "end": "2026-11-25"}
WHOLE = {"start": "2025-12-01", "end": "2026-11-25"}

PARTITIONS = """
SELECT add_month((date_trunc('month', $1::timestamptz, 'UTC') + make_interval(months => n))::date)
FROM generate_series(0, $2::int) n
"""
TENANTS = """
INSERT INTO tenant (id, name, time_zone)
SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'tenant-' || n,
    (ARRAY['UTC', 'Europe/Vienna', 'America/New_York', 'Asia/Kolkata'])[1 + n % 4]
FROM generate_series(1, $1::int) n ON CONFLICT DO NOTHING
"""
KEYS = """
INSERT INTO api_key (id, tenant_id, root_id, name, last4, livemode, scopes)
SELECT k.id, t.id, k.id, 'key-' || n, 'abcd', true, '{}'
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
COUNTED = (
    *("calls", "requests", "images", "text_input_tokens", "image_input_tokens"),
    *("text_output_tokens", "image_output_tokens", "amount_nano"),
)
GROUPS = ("requested_model", "served_model", "provider", "operation", "credential")
LOCAL_DAY = "(u.admitted_at AT TIME ZONE t.time_zone)::date"
SUMS: dict[str, dict[str, str]] = {
    "usage_slot": {"slot": "usage_slot_of(u.admitted_at)"},
    "usage_day": {"day": LOCAL_DAY},
    "usage_owner_day": {"day": LOCAL_DAY, "api_key_id": "u.api_key_id", "user_id": "u.user_id"},
}
"""The tables of sums, and what they are summed by beside what all are summed by."""
IMAGES = """
INSERT INTO image (id, tenant_id, livemode, user_id, reservation_id, path, media_type, size_bytes,
    width, height, prompt, prompt_hash, created_at, expires_at, requested_model)
SELECT 'img_' || replace(r.id::text, '-', ''), r.tenant_id, r.livemode, NULL, r.id,
    r.tenant_id || '/' || r.id || '.png', 'image/png', 1000000, 1024, 1024, 'a red circle', NULL,
    r.admitted_at, r.admitted_at + interval '10 years', r.requested_model
FROM reservation r WHERE r.admitted_at >= $1 AND r.admitted_at < $2
ORDER BY r.admitted_at DESC LIMIT $3
"""
PRICE = """
INSERT INTO price (id, model, effective_from, text_input_nano, image_input_nano, image_output_nano,
    text_output_nano) OVERRIDING SYSTEM VALUE
VALUES (1, 'scale', '2025-01-01', 1, 1, 1, 1) ON CONFLICT DO NOTHING
"""
NEXT_PRICE = "SELECT setval(pg_get_serial_sequence('price', 'id'), max(id)) FROM price"


async def build(owner_url: str, *, entries: int, tenants: int, images: int) -> None:
    """Write what is missing of the ledger, a month a commit; the newest calls have images."""
    connection = await asyncpg.connect(owner_url)
    try:
        await connection.execute("SET synchronous_commit = off")
        # Before the new rows are analysed, Postgres would look each line up by itself.
        await connection.execute("SET enable_nestloop = off")
        await connection.execute("CREATE TABLE IF NOT EXISTS scale_month (month int PRIMARY KEY)")
        await connection.execute(PARTITIONS, EPOCH, MONTHS)
        await connection.execute(TENANTS, tenants)
        await connection.execute(KEYS, min(SPENDERS, tenants))
        await connection.execute(PRICE)
        await connection.execute(NEXT_PRICE)
        per_month = entries // 2 // MONTHS
        is_new = False
        for month in range(MONTHS):
            if await connection.fetchval("SELECT 1 FROM scale_month WHERE month = $1", month):
                continue
            is_new = True
            began = time.monotonic()
            first = month * per_month + 1
            start, length = EPOCH + timedelta(days=30 * month), timedelta(days=30)
            async with connection.transaction():
                await connection.execute(
                    CALLS, first, first + per_month - 1, start, length, min(SPENDERS, tenants)
                )
                await connection.execute(LINES, start, start + length)
                for table in SUMS:
                    await connection.execute(add_sums(table), start, start + length)
                await connection.execute("INSERT INTO scale_month VALUES ($1)", month)
            seconds = time.monotonic() - began
            print(
                f"month {month + 1} of {MONTHS}: {per_month} calls written and added up in"
                f" {seconds:.1f} s",
                flush=True,
            )
        is_new = await _add_images(connection, images) or is_new
        if is_new:
            await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


def add_sums(table: str) -> str:
    """Write the statement that adds the lines of a time to a table of sums."""
    own = {"tenant_id": "u.tenant_id", "livemode": "u.livemode"} | SUMS[table]
    keys = own | {name: f"u.{name}" for name in GROUPS}
    zone = {} if table == "usage_slot" else {"zone": "min(t.time_zone)"}
    values = keys | zone | {name: f"sum(u.{name})" for name in COUNTED}
    added = ", ".join(f"{name} = s.{name} + excluded.{name}" for name in COUNTED)
    return f"""
        INSERT INTO {table} AS s ({", ".join(values)})
        SELECT {", ".join(values.values())}
        FROM usage_line u JOIN tenant t ON t.id = u.tenant_id
        WHERE u.admitted_at >= $1 AND u.admitted_at < $2
        GROUP BY {", ".join(keys.values())}
        ON CONFLICT ({", ".join(keys)}, is_archived) DO UPDATE SET {added}
    """  # noqa: S608 - from this module's own words alone


async def _add_images(connection: asyncpg.Connection, most: int) -> bool:
    """Give the newest calls an image each; return False if there are images already."""
    if await connection.fetchval("SELECT 1 FROM image LIMIT 1"):
        return False
    for month in reversed(range(MONTHS)):
        start = EPOCH + timedelta(days=30 * month)
        done = await connection.execute(IMAGES, start, start + timedelta(days=30), most)
        most -= int(done.split()[-1])
        print(f"month {month + 1} of {MONTHS}: {done.split()[-1]} images", flush=True)
        if most <= 0:
            break
    return True
