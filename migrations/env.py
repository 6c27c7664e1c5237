"""Alembic's entry point: on the connection of `gateway.db.migrate`, or from a shell.

From a shell (`alembic upgrade head`) it finds the database by the gateway's settings.
"""

import asyncio
import re
from collections.abc import Iterable
from datetime import UTC, datetime

from alembic import context
from alembic.operations import MigrationScript
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from gateway.config import load_settings
from gateway.db import (  # noqa: F401 - tables
    console_tables,
    key_tables,
    money_tables,
    request_tables,
    spool_table,
    usage_tables,
)
from gateway.db.addresses import create_engine, database_url
from gateway.db.embedded import DATABASE_NAME, EmbeddedPostgres
from gateway.db.migrate import (
    MIGRATION_TIMEOUT_MS,
    ensure_database,
    forget_predecessor,
    is_compared_name,
)
from gateway.db.sql_files import apply_sql_files
from gateway.db.tables import Table

MAX_REVISION_CHARACTERS = 32


def main() -> None:
    """Run the migrations of Alembic's command."""
    handed_over: Connection | None = context.config.attributes.get("connection")
    if handed_over is not None:
        run(handed_over)
    else:
        asyncio.run(run_from_a_shell())


def run(connection: Connection) -> None:
    """Run each migration in a transaction of its own."""
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        compare_server_default=False,
        transactional_ddl=True,
        transaction_per_migration=True,
        include_name=is_compared_name,
        process_revision_directives=name_revision,
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_from_a_shell() -> None:
    """Connect to the configured database, or to the embedded one of the data directory."""
    settings = load_settings()
    embedded = None
    owner = settings.migration_database_url or settings.database_url
    if owner is not None:
        url = database_url(owner.get_secret_value())
    else:
        embedded = EmbeddedPostgres(settings.data_dir)
        await ensure_database(embedded.owner_url("postgres"), DATABASE_NAME)
        url = embedded.owner_url()
    engine = create_engine(url, role=None, statement_timeout_ms=MIGRATION_TIMEOUT_MS)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run_command)
            await connection.commit()
    finally:
        await engine.dispose()
        if embedded is not None:
            await embedded.close()


def run_command(connection: Connection) -> None:
    """Run an Alembic command; an upgrade does the same as `gateway migrate`."""
    options = context.config.cmd_opts
    is_upgrade = options is not None and options.cmd[0].__name__ == "upgrade"
    if is_upgrade:
        forget_predecessor(connection)
    run(connection)
    if is_upgrade:
        apply_sql_files(connection)


def name_revision(
    _context: MigrationContext, _revision: object, directives: Iterable[MigrationScript]
) -> None:
    """Name a new revision by its date and message."""
    for directive in directives:
        words = re.sub(r"\W+", "_", directive.message or "").strip("_").lower()
        directive.rev_id = f"{datetime.now(UTC):%Y_%m_%d}_{words}"[:MAX_REVISION_CHARACTERS]


main()
