"""The first schema, from `baseline.sql`, or the additions to a database that has it already."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_29_01_baseline"
down_revision = None

BASELINE = Path(__file__).resolve().parents[1] / "baseline.sql"

# `locked_period`: a budget's period as locked by `reserve`, with the available amount of the limit
# in force. NULL: a shard without a part of the limit.
NEW = """
CREATE TABLE applied_sql (
    file text PRIMARY KEY,
    digest text NOT NULL,
    applied_at timestamptz DEFAULT clock_timestamp() NOT NULL
);
CREATE TYPE locked_period AS (
    id bigint,
    budget_id bigint,
    is_house boolean,
    is_soft boolean,
    division int,
    limit_nano bigint,
    available_nano bigint,
    held_nano bigint,
    is_exceeded boolean
);
"""

# Functions that no release calls any more, and constraints that were added as NOT VALID.
ADOPT = """
DROP FUNCTION IF EXISTS reserve(jsonb, uuid);
DROP FUNCTION IF EXISTS find_api_key(bytea);
DROP FUNCTION IF EXISTS estimate_unknown(interval, int);
ALTER TABLE budget_period VALIDATE CONSTRAINT budget_period_bounds;
ALTER TABLE reservation VALIDATE CONSTRAINT reservation_final_not_negative;
ALTER TABLE ledger VALIDATE CONSTRAINT ledger_amount;
"""


def upgrade() -> None:
    """Create the schema, or complete that of the last development version."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    connection = op.get_bind()
    is_adopted = sa.inspect(connection).has_table("reservation")
    run_script(connection, ADOPT if is_adopted else BASELINE.read_text(encoding="utf-8"))
    run_script(connection, NEW)
