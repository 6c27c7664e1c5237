"""Alembic's entry: runs on the connection that `gateway.db.migrate` hands over."""

from alembic import context

from gateway.db import money_tables, request_tables  # noqa: F401 - they add to the metadata
from gateway.db.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    compare_server_default=False,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
