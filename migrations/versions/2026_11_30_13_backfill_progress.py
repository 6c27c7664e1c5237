"""Backfills record how far they are."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_13_backfill_progress"
down_revision = "2026_11_30_12_stored_bytes"

TABLE = """
CREATE TABLE backfill_progress (
    name text PRIMARY KEY,
    after text[] NOT NULL,
    seen bigint NOT NULL,
    changed bigint NOT NULL
);
"""


def upgrade() -> None:
    """Create the table."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), TABLE)
