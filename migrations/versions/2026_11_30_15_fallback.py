"""Tenants may leave out fallbacks to other models."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_15_fallback"
down_revision = "2026_11_30_14_own_hosts"

# The functions return a further column; they are made again from their file.
TABLES = """
ALTER TABLE tenant ADD COLUMN fallback boolean DEFAULT true NOT NULL;
GRANT UPDATE (fallback) ON tenant TO image_gateway_app;
DROP FUNCTION IF EXISTS find_callers(bytea[]);
DROP FUNCTION IF EXISTS find_caller_by_claims(uuid, text, text, uuid);
DELETE FROM applied_sql WHERE file = 'tenancy/sql/access.sql';
"""


def upgrade() -> None:
    """Add the switch to tenants."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), TABLES)
