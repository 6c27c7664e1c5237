"""Alembic's entry: runs on the connection that `gateway.db.migrate` hands over."""

from alembic import context

from gateway.db.money_tables import LedgerRow

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=LedgerRow.metadata,
    compare_server_default=False,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
