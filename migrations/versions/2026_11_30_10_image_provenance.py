"""Images say if their file is the model's own, or one that the gateway encoded."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_10_image_provenance"
down_revision = "2026_11_30_09_monthly_partitions"

COLUMN = """
ALTER TABLE image ADD COLUMN provenance text NOT NULL DEFAULT 'original';
ALTER TABLE image ADD CONSTRAINT image_provenance
    CHECK (provenance IN ('original', 'marked', 'signed')) NOT VALID;
ALTER TABLE image VALIDATE CONSTRAINT image_provenance;
"""


def upgrade() -> None:
    """Add the column; images from before count as the model's own."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), COLUMN)
