"""The last use of each API key."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_19_key_use"
down_revision = "2026_11_30_18_console"

TABLES = """
CREATE TABLE api_key_use (
    tenant_id uuid NOT NULL REFERENCES tenant (id) ON DELETE RESTRICT,
    api_key_id uuid NOT NULL,
    last_used_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, api_key_id)
);
ALTER TABLE api_key_use ENABLE ROW LEVEL SECURITY;
ALTER TABLE api_key_use FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON api_key_use TO image_gateway_app USING (
    tenant_id = nullif(current_setting('gateway.tenant_id', true), '')::uuid);
CREATE POLICY owner ON api_key_use TO CURRENT_USER USING (true);
GRANT SELECT ON api_key_use TO image_gateway_app;
"""


def upgrade() -> None:
    """Create the table."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), TABLES)
