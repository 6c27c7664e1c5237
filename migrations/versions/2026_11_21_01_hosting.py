"""Hosting: what tenants choose, what is known of an image, and which sweep is due when.

The release before keeps working: `find_api_key` stays beside `find_caller`, because prepared statements
of running processes do not survive a changed result. `settle` writes down the new columns from
2026_11_21_04 on, which replaces it.
"""

from alembic import op

revision = "2026_11_21_01_hosting"
down_revision = "2026_11_20_03_access"

ROLE = "image_gateway_app"

TENANT = """
ALTER TABLE tenant
    ADD COLUMN continuity BOOLEAN DEFAULT true NOT NULL,
    ADD COLUMN stores_prompts BOOLEAN DEFAULT false NOT NULL,
    ADD COLUMN image_retention_seconds INTEGER,
    ADD COLUMN max_image_bytes BIGINT,
    ADD CONSTRAINT tenant_image_retention CHECK (image_retention_seconds BETWEEN 60 AND 315360000),
    ADD CONSTRAINT tenant_max_image_bytes CHECK (max_image_bytes >= 0)
"""

IMAGE = """
ALTER TABLE image
    ADD COLUMN user_id UUID,
    ADD COLUMN width INTEGER,
    ADD COLUMN height INTEGER,
    ADD COLUMN prompt TEXT,
    ADD COLUMN prompt_hash BYTEA
"""

OWN_USERS = """
UPDATE image i SET user_id = r.user_id FROM reservation r
WHERE r.id = i.reservation_id AND r.user_id IS NOT NULL AND i.deleted_at IS NULL
"""

# Rows of deleted images stay, and soon outnumber the others: the history must not walk over them.
INDEXES = """
CREATE INDEX image_history ON image (tenant_id, livemode, created_at, id)
    WHERE deleted_at IS NULL;
CREATE INDEX image_user_history ON image (tenant_id, user_id, livemode, created_at, id)
    WHERE deleted_at IS NULL AND user_id IS NOT NULL;
DROP INDEX image_tenant
"""

SWEEP = """
CREATE TABLE sweep (
    name TEXT NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    store_mark TEXT,
    store_since TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (name)
)
"""

FIND_CALLER = """
CREATE FUNCTION find_caller(p_digest bytea)
RETURNS TABLE (
    id uuid, tenant_id uuid, user_id uuid, livemode boolean, scopes text[], models text[],
    expires_at timestamptz, revoked_at timestamptz, tenant_status text, continuity boolean,
    stores_prompts boolean, image_retention_seconds int
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT k.root_id, k.tenant_id, k.user_id, k.livemode, k.scopes, k.models, k.expires_at,
        k.revoked_at, t.status, t.continuity, t.stores_prompts, t.image_retention_seconds
    FROM api_key k JOIN tenant t ON t.id = k.tenant_id WHERE k.digest = p_digest
$$
"""

GRANTS = {
    "tenant": "UPDATE (continuity, stores_prompts, image_retention_seconds, max_image_bytes)",
    "image": "UPDATE (deleted_at, expires_at, prompt, prompt_hash)",
    "sweep": "SELECT, UPDATE (due_at, store_mark, store_since)",
}


def upgrade() -> None:
    """Add columns, indexes and the table of sweeps; add the new lookup."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statement in (TENANT, IMAGE, OWN_USERS, *INDEXES.split(";"), SWEEP, FIND_CALLER):
        op.execute(statement)
    op.execute("INSERT INTO sweep (name) VALUES ('byte_caps'), ('orphans')")
    for table, rights in GRANTS.items():
        op.execute(f"GRANT {rights} ON {table} TO {ROLE}")
    op.execute("REVOKE ALL ON FUNCTION find_caller(bytea) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION find_caller(bytea) TO {ROLE}")
