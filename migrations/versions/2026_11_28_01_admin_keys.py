"""Admin keys with names, scopes and expiry; versions of the gateway's own secrets; key rotations.

The release before keeps working: new columns have defaults, and it goes on to use the first version
of each secret. It does not know later versions, so roll none while it still serves.
"""

from alembic import op

revision = "2026_11_28_01_admin_keys"
down_revision = "2026_11_28_02b_reconciliation"

ROLE = "image_gateway_app"

# `origin` of the keys that are there is not known: the setting adopts its own at the next start.
COLUMNS = """
ALTER TABLE operator_key
    ADD COLUMN name TEXT DEFAULT '' NOT NULL,
    ADD COLUMN scopes TEXT[] DEFAULT '{admin}' NOT NULL,
    ADD COLUMN origin TEXT,
    ADD COLUMN pepper_version SMALLINT DEFAULT 1 NOT NULL,
    ADD COLUMN expires_at TIMESTAMP WITH TIME ZONE,
    ADD COLUMN last_used_at TIMESTAMP WITH TIME ZONE,
    ADD CONSTRAINT operator_key_scopes CHECK (
        cardinality(scopes) > 0 AND scopes <@ ARRAY['admin', 'admin:read', 'metrics']
    ),
    ADD CONSTRAINT operator_key_origin CHECK (
        origin IN ('first_start', 'setting', 'command', 'rest')
    );
UPDATE operator_key SET name = 'admin key ' || last4;
ALTER TABLE api_key ADD COLUMN pepper_version SMALLINT DEFAULT 1 NOT NULL;
ALTER TABLE audit ADD COLUMN actor_name TEXT;
ALTER TABLE sealed_secret
    ADD COLUMN created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ADD COLUMN used_from TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ADD COLUMN accepted_until TIMESTAMP WITH TIME ZONE;
CREATE TABLE key_rotation (
    id UUID NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id)
);
INSERT INTO sweep (name) VALUES ('secrets')
"""

NOTIFY_TABLE = """
CREATE FUNCTION notify_table() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('gateway_changed', TG_TABLE_NAME);
    RETURN NULL;
END $$
"""

# A new key must not stay among the unknown ones. A new digest of a known key, or its last use, changes
# nothing for those who have it cached; to announce it would clear their caches once for each key.
TRIGGERS = """
CREATE TRIGGER api_key_issued AFTER INSERT ON api_key
    FOR EACH ROW EXECUTE FUNCTION notify_table();
DROP TRIGGER api_key_changed ON api_key;
CREATE TRIGGER api_key_changed AFTER UPDATE ON api_key
    FOR EACH ROW WHEN (OLD.digest = NEW.digest) EXECUTE FUNCTION notify_changed();
CREATE TRIGGER operator_key_made AFTER INSERT ON operator_key
    FOR EACH ROW EXECUTE FUNCTION notify_table();
DROP TRIGGER operator_key_changed ON operator_key;
CREATE TRIGGER operator_key_changed AFTER UPDATE ON operator_key
    FOR EACH ROW WHEN (
        OLD.digest = NEW.digest AND OLD.last_used_at IS NOT DISTINCT FROM NEW.last_used_at
    ) EXECUTE FUNCTION notify_table();
CREATE TRIGGER sealed_secret_changed AFTER INSERT OR UPDATE OR DELETE ON sealed_secret
    FOR EACH ROW EXECUTE FUNCTION notify_table()
"""

# A key is found before its tenant is known; whoever has the secret knows both digests.
REHASH_KEY = """
CREATE FUNCTION rehash_key(p_old bytea, p_new bytea, p_version int) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    UPDATE api_key SET digest = p_new, pepper_version = p_version WHERE digest = p_old;
    UPDATE operator_key SET digest = p_new, pepper_version = p_version WHERE digest = p_old;
$$
"""

GRANTS = {
    "operator_key": "UPDATE (last_used_at, expires_at, name, origin)",
    "audit": "INSERT (actor_name)",
    "sealed_secret": "DELETE, UPDATE (used_from, accepted_until)",
    "data_key": "DELETE",
    "key_rotation": "SELECT, INSERT, UPDATE (finished_at)",
}


def upgrade() -> None:
    """Add columns, a table, triggers, a function and rights."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statement in COLUMNS.split(";"):
        op.execute(statement)
    op.execute(NOTIFY_TABLE)
    for statement in TRIGGERS.split(";"):
        op.execute(statement)
    op.execute(REHASH_KEY)
    for table, rights in GRANTS.items():
        op.execute(f"GRANT {rights} ON {table} TO {ROLE}")
    op.execute("REVOKE ALL ON FUNCTION rehash_key(bytea, bytea, int) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION rehash_key(bytea, bytea, int) TO {ROLE}")
