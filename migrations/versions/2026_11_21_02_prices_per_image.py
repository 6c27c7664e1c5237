"""Prices by the image, for models that bill so: an operator's own host may still have them."""

from alembic import op

revision = "2026_11_21_02_prices_per_image"
down_revision = "2026_11_21_01_hosting"


def upgrade() -> None:
    """Add the rate; the prices that are there have none."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("ALTER TABLE price ADD COLUMN per_image_nano bigint DEFAULT 0 NOT NULL")
    op.execute(
        "ALTER TABLE price ADD CONSTRAINT price_per_image_not_negative CHECK (per_image_nano >= 0)"
    )
