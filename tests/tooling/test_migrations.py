"""Migrations: the schema is what the code expects, and several processes may migrate at once."""

import asyncio
import gzip
import hashlib
import zipfile
from pathlib import Path

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hatchling.builders.wheel import WheelBuilder
from sqlalchemy import Connection, text

from gateway.config import Settings
from gateway.db import companions
from gateway.db.addresses import create_engine, database_url
from gateway.db.backfill import Backfill, BackfillProgress, run_backfill
from gateway.db.migrate import is_compared_name, migrate
from gateway.db.request_tables import RequestRow
from gateway.db.revisions import migrations_dir, newest_revision
from gateway.db.sql_files import FILES, ISOLATION, read_sql_file
from gateway.errors import ConfigurationError
from tests.harness import PostgresServer, owner_connections, run_sql, served_gateway
from tests.money_helpers import image_body

ROOT = Path(__file__).resolve().parents[2]
BEFORE_THE_BASELINE = ROOT / "tests" / "data" / "before_the_baseline.sql.gz"
"""A dump of the last revision before the baseline, with calls in every state."""
CARRIED = {
    "tenant": "SELECT id, name, status, time_zone, created_at, continuity, stores_prompts,"
    " image_retention_seconds, max_image_bytes, deleted_at FROM tenant ORDER BY id",
    "budget": "SELECT id, tenant_id, api_key_id, user_id, livemode, period, limit_nano, created_at,"
    " removed_at, enforcement, alert_percents FROM budget WHERE tenant_id IS NOT NULL ORDER BY id",
    "budget_period": "SELECT id, budget_id, tenant_id, period_start, period_end, ceiling_nano,"
    " spent_nano, held_nano, breach_nano, soft_nano FROM budget_period"
    " WHERE tenant_id IS NOT NULL ORDER BY id",
    "reservation": "SELECT id, tenant_id, livemode, api_key_id, user_id, operation,"
    " requested_model, served_model, provider, credential, price_id, held_nano, state, final_nano,"
    " outcome, instance, admitted_at, deadline_at, resolved_at, terms FROM reservation ORDER BY id",
    "ledger": "SELECT reservation_id, seq, at, admitted_at, tenant_id, livemode, api_key_id,"
    " user_id, kind, amount_nano, requests, images, text_input_tokens, image_output_tokens"
    " FROM ledger ORDER BY 1, 2",
    "audit": "TABLE audit ORDER BY id",
}
OLD_CLAIMS = (
    "SELECT tenant_id, id AS reservation_id, idempotency_key AS key, operation, livemode, user_id,"
    " request_hash, answer, admitted_at AS claimed_at FROM reservation"
    " WHERE idempotency_key IS NOT NULL ORDER BY id"
)
CLAIMS = (
    "SELECT tenant_id, reservation_id, key, operation, livemode, user_id, request_hash, answer,"
    " claimed_at FROM idempotency_claim ORDER BY reservation_id"
)
FUNCTIONS = (
    "SELECT p.proname AS name, pg_get_function_identity_arguments(p.oid) AS arguments,"
    " pg_get_functiondef(p.oid) AS definition FROM pg_proc p"
    " JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'public' ORDER BY 1, 2"
)


async def test_the_migrated_schema_is_the_one_that_the_tables_describe(database: str) -> None:
    def differences(connection: Connection) -> list[object]:
        compared = {"include_name": is_compared_name}
        context = MigrationContext.configure(connection, opts=compared)
        return list(compare_metadata(context, RequestRow.metadata))

    engine = create_engine(database_url(database), role=None)
    async with engine.connect() as connection:
        found = await connection.run_sync(differences)
    await engine.dispose()
    assert found == []


async def test_several_processes_may_migrate_an_empty_database_at_once(
    postgres: PostgresServer,
) -> None:
    url = await postgres.create(template="template0")
    revisions = await asyncio.gather(*(migrate(database_url(url)) for _ in range(4)))
    rows = await run_sql(url, "SELECT version_num FROM alembic_version")
    assert [row.version_num for row in rows] == list(set(revisions))
    await postgres.drop(url)


def test_the_wheel_carries_every_migration(tmp_path: Path) -> None:
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path)))
    names = zipfile.ZipFile(wheel).namelist()
    expected = {
        f"gateway/migrations/{path.relative_to(migrations_dir())}"
        for path in migrations_dir().rglob("*.py")
    }
    assert expected - set(names) == set()
    assert "gateway/catalog/catalog.toml" in names
    assert {f"gateway/{name}" for name in (*FILES, ISOLATION)} - set(names) == set()
    assert "gateway/migrations/baseline.sql" in names


def test_every_sql_file_of_the_package_is_applied() -> None:
    package = ROOT / "gateway"
    found = {str(path.relative_to(package)) for path in package.rglob("*.sql")}
    assert found == {*FILES, ISOLATION}


async def test_the_functions_in_the_database_are_those_of_the_files(database: str) -> None:
    rows = await run_sql(database, "SELECT file, digest FROM applied_sql")
    assert {row.file: row.digest for row in rows} == {
        name: hashlib.sha256(read_sql_file(name).encode()).hexdigest() for name in FILES
    }


async def test_a_changed_file_is_applied_again_and_an_unchanged_one_is_not(
    postgres: PostgresServer,
) -> None:
    url = await postgres.create()
    await run_sql(
        url,
        "CREATE OR REPLACE FUNCTION usd(p_nano bigint) RETURNS text"
        " LANGUAGE sql IMMUTABLE AS $$SELECT 'changed'$$",
    )
    await migrate(database_url(url))
    [kept] = await run_sql(url, "SELECT usd(1) AS text")
    await run_sql(url, "UPDATE applied_sql SET digest = '' WHERE file = 'billing/sql/alerts.sql'")
    await migrate(database_url(url))
    [renewed] = await run_sql(url, "SELECT usd(1) AS text")
    assert (kept.text, renewed.text) == ("changed", "0.000000001")
    await postgres.drop(url)


KEYS = """
    SELECT id, tenant_id, user_id, root_id, name, digest, pepper_version, last4, livemode, scopes,
        models, expires_at, revoked_at, created_at
    FROM api_key ORDER BY id
"""
IMAGES = """
    SELECT i.id, i.tenant_id, i.livemode, i.user_id, i.reservation_id, r.requested_model, i.path,
        i.media_type, i.size_bytes, i.width, i.height, i.prompt, i.prompt_hash, i.created_at,
        i.expires_at, i.deleted_at
    FROM image i JOIN reservation r ON r.id = i.reservation_id ORDER BY i.id
"""
KEYS_BY_DIRECTORY = """api_key JOIN (
    SELECT tenant_id, api_key_id AS id, digest, pepper_version FROM key_directory
) d USING (tenant_id, id)"""


async def test_a_database_of_the_last_revision_before_the_baseline_is_adopted_with_its_data(
    postgres: PostgresServer, database: str
) -> None:
    url = await postgres.create(template="template0")
    await _restore(url, gzip.decompress(BEFORE_THE_BASELINE.read_bytes()).decode())
    before = {table: await run_sql(url, query) for table, query in CARRIED.items()}
    claims = await run_sql(url, OLD_CLAIMS)
    keys, images = await run_sql(url, KEYS), await run_sql(url, IMAGES)
    assert await migrate(database_url(url)) == newest_revision()
    after = {table: await run_sql(url, query) for table, query in CARRIED.items()}
    assert after == before
    assert await run_sql(url, KEYS.replace("api_key", KEYS_BY_DIRECTORY)) == keys
    assert await run_sql(url, IMAGES) == images
    assert await run_sql(url, IMAGES.replace("r.requested", "i.requested")) == images
    assert [row.state for row in after["reservation"]] == ["posted", "void", "posted_est", "held"]
    assert await run_sql(url, CLAIMS) == claims
    assert len(claims) > 1
    house = await run_sql(
        url,
        "SELECT p.budget_id, p.shard, p.spent_nano, p.held_nano FROM house_budget_period p"
        " JOIN house_budget b ON b.id = p.budget_id AND b.limit_nano = 50000000000 ORDER BY 2",
    )
    of_first = (2, 0, 13_000_001, 40_000_000)
    assert [tuple(row) for row in house] == [of_first, *((2, shard, 0, 0) for shard in range(1, 8))]
    charged = await run_sql(
        url, "SELECT DISTINCT periods, house_shard, house_periods FROM reservation"
    )
    assert [tuple(row) for row in charged] == [([1], 0, [2])]
    assert await run_sql(url, FUNCTIONS) == await run_sql(database, FUNCTIONS)
    settled = await run_sql(
        url,
        "SELECT result, breach FROM settle(CAST(:settlements AS jsonb))",
        settlements=f'[{{"tenant_id": "{after["reservation"][0].tenant_id}",'
        ' "id": "01900000-0000-7000-8000-000000000104", "kind": "post",'
        ' "amount_nano": 6000001, "outcome": "success", "images": 1}]',
    )
    assert [tuple(row) for row in settled] == [("ok", 0)]
    assert await run_sql(url, "SELECT * FROM invariant_break") == []
    await postgres.drop(url)


async def test_a_revision_that_fails_leaves_those_before_it(postgres: PostgresServer) -> None:
    url = await postgres.create(template="template0")
    await _restore(url, gzip.decompress(BEFORE_THE_BASELINE.read_bytes()).decode())
    engine = create_engine(database_url(url), role=None)
    async with engine.connect() as reader:
        await reader.execute(text("SELECT 1 FROM budget_period"))
        with pytest.raises(asyncpg.LockNotAvailableError):
            await migrate(database_url(url))
    await engine.dispose()
    [row] = await run_sql(url, "SELECT version_num FROM alembic_version")
    assert row.version_num not in {newest_revision(), "2026_11_29_01_baseline"}
    assert await migrate(database_url(url)) == newest_revision()
    assert await run_sql(url, "SELECT * FROM invariant_break") == []
    await postgres.drop(url)


async def test_a_migration_may_build_an_index_outside_of_its_transaction(database: str) -> None:
    def build(connection: Connection) -> None:
        options = {"transaction_per_migration": True, "transactional_ddl": True}
        context = MigrationContext.configure(connection, opts=options)
        with context.begin_transaction(_per_migration=True), context.autocommit_block():
            connection.execute(text("CREATE INDEX CONCURRENTLY one ON image (width)"))

    engine = create_engine(database_url(database), role=None)
    async with engine.connect() as connection:
        await connection.run_sync(build)
        await connection.commit()
    await engine.dispose()
    [row] = await run_sql(
        database, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'one'::regclass"
    )
    assert row.indisvalid
    await run_sql(database, "DROP INDEX one")


FILLED = Backfill(
    name="fill_seeds",
    table="seeds",
    key={"tenant_id": "uuid", "id": "text"},
    change="seed = t.number * 2",
    where="t.seed IS NULL",
)
SEEDS = (
    "CREATE TABLE seeds ("
    "tenant_id uuid, id text, number int, seed int, PRIMARY KEY (tenant_id, id))"
)
PLANTED = (
    "INSERT INTO seeds SELECT md5((n % 7)::text)::uuid, n::text, n,"
    " CASE WHEN n % 10 = 0 THEN -1 END FROM generate_series(1, 2500) n"
)


LAST = "'ffffffff-ffff-ffff-ffff-ffffffffffff'"


class Interrupted(BaseException):
    """A migration's process that ends."""


async def test_an_interrupted_backfill_goes_on_where_it_was(database: str) -> None:
    for statement in (SEEDS, PLANTED):
        await run_sql(database, statement)
    seen: list[int] = []

    def note(progress: BackfillProgress) -> None:
        seen.append(progress.seen)
        if len(seen) == 2:
            raise Interrupted

    def fill(connection: Connection) -> BackfillProgress:
        return run_backfill(connection, FILLED, batch=1000, note=note)

    engine = create_engine(database_url(database), role=None)
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with alone.connect() as connection:
        with pytest.raises(Interrupted):
            await connection.run_sync(fill)
    [row] = await run_sql(database, "SELECT count(*) FILTER (WHERE seed > 0) AS done FROM seeds")
    assert 1700 < row.done < 1900
    await run_sql(database, f"INSERT INTO seeds VALUES ({LAST}, 'new', 7, -1)")  # noqa: S608
    async with alone.connect() as connection:
        done = await connection.run_sync(fill)
    await engine.dispose()
    assert (seen, done.changed) == ([1000, 2000, 2501], 2250)
    wrong = "SELECT * FROM seeds WHERE seed <> CASE WHEN number % 10 = 0 OR id = 'new' THEN -1"
    assert await run_sql(database, f"{wrong} ELSE 2 * number END") == []
    assert await run_sql(database, "SELECT * FROM backfill_progress") == []
    await run_sql(database, "DROP TABLE seeds")


async def test_a_backfill_waits_for_a_row_that_a_call_has_locked(
    database: str, settings: Settings
) -> None:
    for statement in (SEEDS, PLANTED):
        await run_sql(database, statement)
    engine = create_engine(database_url(database), role=None)
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with (
        owner_connections(settings, 2) as (call, watcher),
        alone.connect() as connection,
    ):
        calling = call.transaction()
        await calling.start()
        await call.execute("UPDATE seeds SET number = 6 WHERE id = '5'")
        await connection.execute(text("SET lock_timeout = '50ms'"))
        filling = asyncio.create_task(
            connection.run_sync(lambda one: run_backfill(one, FILLED, batch=5000))
        )
        while not await watcher.fetchval(LOCK_WAITED_FOR):
            assert not filling.done()
            await asyncio.sleep(0)
        await calling.commit()
        assert (await filling).changed == 2250
    await engine.dispose()
    [row] = await run_sql(database, "SELECT seed FROM seeds WHERE id = '5'")
    assert row.seed == 12
    await run_sql(database, "DROP TABLE seeds")


LOCK_WAITED_FOR = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%seeds%'
"""


async def test_a_database_of_an_unknown_revision_is_refused_and_left_as_it_is(
    postgres: PostgresServer,
) -> None:
    url = await postgres.create()
    await run_sql(url, "UPDATE alembic_version SET version_num = '2099_01_01_of_a_later_release'")
    with pytest.raises(ConfigurationError, match="revision that this release does not know"):
        await migrate(database_url(url))
    [row] = await run_sql(url, "SELECT version_num FROM alembic_version")
    assert row.version_num == "2099_01_01_of_a_later_release"
    await postgres.drop(url)


@pytest.mark.parametrize(
    ("oldest", "message"),
    [(companions.OLDEST, None), ("98.0", "too new for this release .* Releases from 98.0 on")],
)
async def test_the_schema_of_a_newer_release_is_left_as_it_is(
    postgres: PostgresServer, oldest: str, message: str | None
) -> None:
    """Served where the newer release admits this one, which does not put its functions back."""
    url = await postgres.create()
    note = f"Written by release 99.0. Releases from {oldest} on may serve it."
    for statement in (
        "UPDATE alembic_version SET version_num = '2099_01_01_of_a_later_release'",
        "UPDATE applied_sql SET digest = 'of a later file'",
        f"COMMENT ON TABLE alembic_version IS '{note}'",
    ):
        await run_sql(url, statement)
    if message is None:
        assert await migrate(database_url(url)) == "2099_01_01_of_a_later_release"
    else:
        with pytest.raises(ConfigurationError, match=message):
            await migrate(database_url(url))
    assert {row.digest for row in await run_sql(url, "SELECT digest FROM applied_sql")} == {
        "of a later file"
    }
    [row] = await run_sql(url, companions.READ_NOTE)
    assert row.obj_description == note
    await postgres.drop(url)


async def test_an_old_gateway_starts_and_buys_beside_a_newer_release(
    settings: Settings, database: str
) -> None:
    note = f"Written by release 99.0. Releases from {companions.OLDEST} on may serve it."
    await run_sql(database, "UPDATE alembic_version SET version_num = '2099_01_01_later'")
    await run_sql(database, f"COMMENT ON TABLE alembic_version IS '{note}'")
    async with served_gateway(settings) as served, served.http(await served.key()) as http:
        answer = await http.post("/v1/images/generations", json=image_body())
        assert answer.status_code == 200
        assert await served.ledger_total() > 0
        await served.check_invariants()


async def test_a_migrated_schema_says_which_releases_may_serve_it(postgres: PostgresServer) -> None:
    url = await postgres.create()
    await migrate(database_url(url))
    [row] = await run_sql(url, companions.READ_NOTE)
    assert row.obj_description == companions.NOTE
    assert not companions.is_newer(companions.NOTE)
    assert companions.may_serve(companions.NOTE)
    await postgres.drop(url)


async def _restore(url: str, dump: str) -> None:
    """Run a plain dump."""
    address = database_url(url)
    connection = await asyncpg.connect(
        user=address.username,
        password=address.password,
        host=address.query.get("host") or address.host,
        port=address.port,
        database=address.database,
    )
    try:
        await connection.execute(dump)
    finally:
        await connection.close()
