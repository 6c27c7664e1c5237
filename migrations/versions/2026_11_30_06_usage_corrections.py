"""A correction downwards can be added to the sums of usage."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_06_usage_corrections"
down_revision = "2026_11_30_05_usage_status"

# Postgres checks the row that is to be added before it finds the one to add it to.
CONSTRAINTS = """
ALTER TABLE usage_slot DROP CONSTRAINT usage_slot_not_negative;
ALTER TABLE usage_day DROP CONSTRAINT usage_day_not_negative;
ALTER TABLE usage_owner_day DROP CONSTRAINT usage_owner_day_not_negative;
"""


def upgrade() -> None:
    """Drop the constraints; I6 compares the sums with the ledger."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), CONSTRAINTS)
