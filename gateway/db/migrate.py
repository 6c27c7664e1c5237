"""Migrations, applied by one process at a time as the owner of the database."""

import re
from importlib import import_module

import structlog
from sqlalchemy import URL, Connection, inspect, text

from gateway import __version__
from gateway.db import companions
from gateway.db.addresses import create_engine
from gateway.db.engine import APP_ROLE
from gateway.db.revisions import newest_revision
from gateway.db.sql_files import apply_sql_files
from gateway.errors import ConfigurationError

MIGRATION_TIMEOUT_MS = 600_000
ADVISORY_LOCK = 4_702_111_234_567
"""An arbitrary number, the same in every release."""
PARTITION = re.compile(r"(request_log|ledger|audit)_[0-9]{6,8}")
"""The name of a partition by time."""
PREDECESSOR = "2026_11_28_09_request_log_cost"
"""The last revision before the baseline; its schema is the baseline's."""
log = structlog.get_logger(__name__)


def is_compared_name(name: str | None, kind: str, _parents: object) -> bool:
    """Tell if Alembic compares what has this name: not partitions, which come and go by time."""
    return kind != "table" or name is None or PARTITION.fullmatch(name) is None


async def ensure_database(maintenance_url: URL, name: str) -> None:
    """Create the database `name` if it does not exist."""
    engine = create_engine(maintenance_url, role=None)
    try:
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
            exists = text("SELECT 1 FROM pg_database WHERE datname = :name")
            if (await connection.execute(exists, {"name": name})).first() is None:
                await connection.execute(text(f'CREATE DATABASE "{name}"'))
    finally:
        await engine.dispose()


async def migrate(owner_url: URL, *, login_role: bool = False) -> str:
    """Migrate the schema to the newest revision and return its own; other processes wait meanwhile.

    The schema of a newer release stays as it is, if that release admits this one beside it.

    Each revision is a transaction of its own: if one fails, those before it stay, and the next run
    begins with it.

    `login_role` grants LOGIN to the serving role, which is safe on the embedded server: it admits
    only the gateway's own user and root.
    """
    engine = create_engine(
        owner_url, role=None, pool_size=2, statement_timeout_ms=MIGRATION_TIMEOUT_MS
    )
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    try:
        async with alone.connect() as lock, engine.connect() as connection:
            await lock.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
            await connection.run_sync(_upgrade)
            if login_role:
                await connection.execute(text(f"ALTER ROLE {APP_ROLE} LOGIN"))
            revision = await connection.execute(text("SELECT version_num FROM alembic_version"))
            newest = str(revision.scalar_one())
            await connection.commit()
            return newest
    finally:
        await engine.dispose()


def forget_predecessor(connection: Connection) -> None:
    """Remove the last revision before the baseline, so that the baseline adopts its database."""
    if inspect(connection).has_table("alembic_version"):
        connection.execute(
            text("DELETE FROM alembic_version WHERE version_num = :predecessor"),
            {"predecessor": PREDECESSOR},
        )
    connection.commit()


def _upgrade(connection: Connection) -> None:
    forget_predecessor(connection)
    note = _note(connection)
    if companions.is_newer(note):
        if not companions.may_serve(note):
            raise ConfigurationError(
                f"The schema of the database is too new for this release ({__version__}). {note} "
                "Start one of those."
            )
        log.warning("schema_of_a_newer_release", note=note)
        return
    if _revision(connection) != newest_revision():
        # Alembic is a tenth of what a start imports, and there is rarely anything to migrate.
        import_module("gateway.db.alembic_upgrade").upgrade(connection)
    apply_sql_files(connection)
    connection.execute(text(f"COMMENT ON TABLE alembic_version IS '{companions.NOTE}'"))


def _note(connection: Connection) -> str | None:
    return _read(connection, companions.READ_NOTE)


def _revision(connection: Connection) -> str | None:
    return _read(connection, "SELECT version_num FROM alembic_version")


def _read(connection: Connection, query: str) -> str | None:
    """Read a value that stands with Alembic's table; None before the first migration."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text(query))
    connection.commit()
    return found
