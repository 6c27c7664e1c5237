"""Pages and current periods read about as many rows as they need, however many there are."""

from uuid import UUID

from sqlalchemy import text

from gateway.db.engine import OperatorSession, TenantSession
from gateway.domain import Caller
from gateway.library import history
from gateway.tenancy import tenants
from tests.harness import GPT2, Served, owner_connections
from tests.hosting_helpers import Hosted

MANY = 3000
READ = """
    SELECT coalesce(sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)), 0)::int AS rows
    FROM pg_stat_xact_user_tables WHERE relname = :table
"""
COPIES = """
    INSERT INTO image
    SELECT (jsonb_populate_record(i, jsonb_build_object(
        'id', i.id || '_' || left(:model, 1) || n, 'requested_model', CAST(:model AS text),
        'created_at', i.created_at + make_interval(secs => n * CAST(:step AS float)))
    )).* FROM image i CROSS JOIN generate_series(1, :count) n WHERE i.id = :image
"""
CURRENT = "SELECT current_periods(tenant_id, ARRAY[id], now()) FROM budget"
PAST_DAYS = """
    INSERT INTO budget_period (budget_id, tenant_id, period_start, period_end)
    SELECT b.id, b.tenant_id, d, d + interval '1 day' FROM budget b
    CROSS JOIN generate_series(date_trunc('day', now(), 'UTC') - interval '1000 days',
        date_trunc('day', now(), 'UTC') - interval '1 day', interval '1 day') d
"""


async def rows_read(session: OperatorSession | TenantSession, table: str) -> int:
    """Count the rows that this transaction has read from a table so far."""
    found: int = (await session.execute(text(READ), {"table": table})).scalar_one()
    return found


async def test_the_history_of_a_rare_model_reads_its_images_alone(hosted: Hosted) -> None:
    served, key = hosted.served, await hosted.served.key()
    image = await hosted.put(key)
    for model, step, count in (("rare", -1.0, 3), (GPT2, 0.001, MANY)):
        await served.owner_sql(COPIES, model=model, step=step, count=count, image=image.id)
    await served.owner_sql("ANALYZE image, reservation")
    caller = await served.gateway.api_keys.authenticate(key.secret.reveal())
    assert isinstance(caller, Caller)
    async with served.gateway.database.tenant(served.tenant_id) as session:
        page = await history.list_images(session, caller, limit=20, model="rare")
        read = await rows_read(session, "image")
    assert [one.id for one in page.images] == [f"{image.id}_r{n}" for n in (1, 2, 3)]
    assert read <= 10
    async with served.http(key) as http:
        listed = (await http.get("/v1/images?model=rare")).json()["data"]
    assert [one["id"] for one in listed] == [one.id for one in page.images]


async def test_a_page_of_tenants_reads_its_tenants_alone(served: Served) -> None:
    await served.owner_sql(
        "INSERT INTO tenant (id, name) SELECT gen_random_uuid(), 'many ' || lpad(n::text, 5, '0')"
        " FROM generate_series(1, :count) n",
        count=MANY,
    )
    await served.owner_sql("ANALYZE tenant")
    async with served.gateway.database.operator() as session:
        by_name = await tenants.list_by_name(session, limit=50, after="many 01000")
        newest = await tenants.list_page(session, limit=50, after=UUID(int=1 << 127))
        read = await rows_read(session, "tenant")
    assert [one.name for one in by_name.items] == [f"many {n:05}" for n in range(1001, 1051)]
    assert (by_name.has_more, newest.has_more, len(newest.items)) == (True, True, 50)
    assert read <= 110


async def test_the_current_period_is_found_without_reading_earlier_ones(served: Served) -> None:
    await served.budget("5", window="day")
    await served.owner_sql(PAST_DAYS)
    await served.owner_sql(CURRENT)
    async with (
        owner_connections(served.gateway.settings, 1) as [connection],
        connection.transaction(),
    ):
        # As `reserve` calls it.
        await connection.execute("SET LOCAL enable_seqscan = off")
        found = await connection.fetchval(CURRENT)
        read = await connection.fetchval(READ.replace(":table", "'budget_period'"))
    assert len(found) == 1
    assert read <= 5
