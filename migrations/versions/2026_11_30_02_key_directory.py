"""The directory of API keys by digest, and the record of changes that caches poll."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_02_key_directory"
down_revision = "2026_11_30_01_usage_by_zone"

# A digest is looked up before its tenant is known, so it is kept apart from the keys, which can
# then be distributed by tenant. No foreign key: it would tie the directory to that distribution.
TABLES = """
CREATE TABLE key_directory (
    digest bytea PRIMARY KEY,
    tenant_id uuid NOT NULL,
    api_key_id uuid NOT NULL,
    pepper_version smallint DEFAULT 1 NOT NULL
);
INSERT INTO key_directory (digest, tenant_id, api_key_id, pepper_version)
SELECT digest, tenant_id, id, pepper_version FROM api_key;
DROP TRIGGER IF EXISTS api_key_changed ON api_key;
DROP FUNCTION IF EXISTS find_caller(bytea);
ALTER TABLE api_key DROP COLUMN digest, DROP COLUMN pepper_version;
ALTER TABLE key_directory ENABLE ROW LEVEL SECURITY;
ALTER TABLE key_directory FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON key_directory TO image_gateway_app USING (
    tenant_id = nullif(current_setting('gateway.tenant_id', true), '')::uuid);
CREATE POLICY owner ON key_directory TO CURRENT_USER USING (true);
GRANT SELECT, INSERT ON key_directory TO image_gateway_app;

CREATE TABLE change (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid bigint DEFAULT pg_current_xact_id()::text::bigint NOT NULL,
    at timestamptz DEFAULT clock_timestamp() NOT NULL,
    tag text NOT NULL
);
CREATE INDEX change_xid ON change (xid);
GRANT SELECT, INSERT (tag), DELETE ON change TO image_gateway_app;
"""


def upgrade() -> None:
    """Move the digests out of the keys, and create the record of changes."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), TABLES)
