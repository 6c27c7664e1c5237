"""No cost below zero in the request log, as in every other column of money.

The release before keeps working: it writes none. The table is new in this release, so few rows are
checked.
"""

from alembic import op

revision = "2026_11_28_09_request_log_cost"
down_revision = "2026_11_28_01b_resealing"


def upgrade() -> None:
    """Add the check; the partitions inherit it."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(
        "ALTER TABLE request_log"
        " ADD CONSTRAINT request_log_cost_not_negative CHECK (cost_nano >= 0)"
    )
