"""The sweep of orphans remembers up to when it has compared files and rows."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_03_compared_images"
down_revision = "2026_11_30_02_key_directory"

COLUMNS = """
ALTER TABLE sweep ADD COLUMN compared_to timestamptz, ADD COLUMN whole_at timestamptz;
GRANT UPDATE (compared_to, whole_at) ON sweep TO image_gateway_app;
"""


def upgrade() -> None:
    """Add the columns; the first sweep compares everything."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), COLUMNS)
