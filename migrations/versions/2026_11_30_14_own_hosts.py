"""Prices per second of a call, and the seeds of images, for models on hosts of one's own."""

from alembic import op

revision = "2026_11_30_14_own_hosts"
down_revision = "2026_11_30_13_backfill_progress"


def upgrade() -> None:
    """Add the columns; earlier prices and images have neither."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(
        "ALTER TABLE price ADD COLUMN per_second_nano bigint NOT NULL DEFAULT 0,"
        " ADD CONSTRAINT price_per_second_not_negative CHECK (per_second_nano >= 0),"
        " DROP CONSTRAINT price_bounded,"
        " ADD CONSTRAINT price_bounded CHECK (greatest(text_input_nano, image_input_nano,"
        " image_output_nano, text_output_nano, per_image_nano, per_second_nano) <= 10000000000000)"
    )
    op.execute("ALTER TABLE image ADD COLUMN seed bigint")
