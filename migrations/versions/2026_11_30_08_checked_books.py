"""Checks of the books go on where the last one ended."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_08_checked_books"
down_revision = "2026_11_30_07_tenant_keys"

TABLES = """
CREATE TABLE checked_period (
    period_key bigint PRIMARY KEY,
    spent_nano bigint NOT NULL,
    CONSTRAINT checked_period_not_negative CHECK (spent_nano >= 0)
);
GRANT SELECT ON checked_period TO image_gateway_app;
CREATE INDEX reservation_admitted ON reservation USING brin (admitted_at);
"""


def upgrade() -> None:
    """Create the table of sums that were checked, and the index of reservations by time."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), TABLES)
