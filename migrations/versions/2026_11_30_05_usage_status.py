"""Reports by status: the function of reports returns a further column."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_05_usage_status"
down_revision = "2026_11_30_04_images_by_model"

CHANGES = """
DROP FUNCTION IF EXISTS usage_between(uuid, boolean, text, timestamptz, timestamptz, text);
DROP FUNCTION IF EXISTS usage_edges(timestamptz, timestamptz, text);
"""


def upgrade() -> None:
    """Drop the functions; their file creates them anew."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), CHANGES)
