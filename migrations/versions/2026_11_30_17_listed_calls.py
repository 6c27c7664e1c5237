"""A reservation lists the provider calls that were made for it."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_17_listed_calls"
down_revision = "2026_11_30_16_calls"

TABLES = "ALTER TABLE reservation ADD COLUMN calls jsonb;"


def upgrade() -> None:
    """Add the column."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), TABLES)
