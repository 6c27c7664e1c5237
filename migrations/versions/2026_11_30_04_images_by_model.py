"""Images name the model they were requested from, so that a history of one model is an index scan."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_04_images_by_model"
down_revision = "2026_11_30_03_compared_images"

COLUMN = """
ALTER TABLE image ADD COLUMN requested_model text;
UPDATE image i SET requested_model = r.requested_model
FROM reservation r WHERE r.id = i.reservation_id;
ALTER TABLE image ALTER COLUMN requested_model SET NOT NULL;
CREATE INDEX image_model_history ON image (tenant_id, livemode, requested_model, created_at, id)
    WHERE deleted_at IS NULL;
"""


def upgrade() -> None:
    """Copy the model of each image's generation."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), COLUMN)
