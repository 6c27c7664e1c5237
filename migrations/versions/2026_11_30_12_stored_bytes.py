"""The bytes of stored images of tenants with a cap are counted."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_12_stored_bytes"
down_revision = "2026_11_30_11_archived_months"

STORAGE = """
CREATE TABLE stored_bytes (
    tenant_id uuid PRIMARY KEY REFERENCES tenant (id) ON DELETE RESTRICT,
    counted_to timestamptz NOT NULL,
    size_bytes bigint NOT NULL,
    CONSTRAINT stored_bytes_not_negative CHECK (size_bytes >= 0)
) WITH (fillfactor = 50);
ALTER TABLE stored_bytes ENABLE ROW LEVEL SECURITY;
ALTER TABLE stored_bytes FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON stored_bytes TO image_gateway_app USING (
    tenant_id = nullif(current_setting('gateway.tenant_id', true), '')::uuid);
CREATE POLICY owner ON stored_bytes TO CURRENT_USER USING (true);
GRANT SELECT ON stored_bytes TO image_gateway_app;
"""


def upgrade() -> None:
    """Create the table of counters; gateways fill it."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), STORAGE)
