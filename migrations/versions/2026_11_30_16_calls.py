"""The request log has the number of provider calls and the model version that was served."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_16_calls"
down_revision = "2026_11_30_15_fallback"

TABLES = """
ALTER TABLE request_log ADD COLUMN provider_calls smallint, ADD COLUMN model_version text;
"""


def upgrade() -> None:
    """Add the columns."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), TABLES)
