"""Migrations: the schema is what the code expects, and several processes may migrate at once."""

import asyncio
import zipfile
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hatchling.builders.wheel import WheelBuilder
from sqlalchemy import Connection

from gateway.db.engine import create_engine, database_url
from gateway.db.migrate import migrate
from gateway.db.request_tables import RequestRow
from gateway.db.revisions import migrations_dir
from tests.harness import PostgresServer, run_sql

ROOT = Path(__file__).resolve().parents[1]


async def test_the_migrated_schema_is_the_one_that_the_tables_describe(database: str) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection)
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
    assert "gateway/images/catalog.toml" in names
