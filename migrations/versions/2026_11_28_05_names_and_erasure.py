"""Names of API keys; users that are disabled, tenants and users that are deleted; tested credentials.

The release before keeps working: it ignores the new columns, and both lookups return the columns
that it knows. It takes every status but `active` for a suspended tenant, and so refuses the caller.
"""

from alembic import op

revision = "2026_11_28_05_names_and_erasure"
down_revision = "2026_11_21_12_claims"

ROLE = "image_gateway_app"

COLUMNS = """
ALTER TABLE api_key ADD COLUMN name TEXT;
ALTER TABLE tenant
    ADD COLUMN deleted_at TIMESTAMP WITH TIME ZONE,
    DROP CONSTRAINT tenant_status,
    ADD CONSTRAINT tenant_status CHECK (status IN ('active', 'suspended', 'deleted')),
    ADD CONSTRAINT tenant_deleted CHECK ((status = 'deleted') = (deleted_at IS NOT NULL));
ALTER TABLE tenant_user
    ADD COLUMN status TEXT DEFAULT 'active' NOT NULL,
    ADD COLUMN deleted_at TIMESTAMP WITH TIME ZONE,
    ADD CONSTRAINT tenant_user_status CHECK (status IN ('active', 'disabled', 'deleted')),
    ADD CONSTRAINT tenant_user_deleted CHECK ((status = 'deleted') = (deleted_at IS NOT NULL));
ALTER TABLE credential ADD COLUMN tested_at TIMESTAMP WITH TIME ZONE;
CREATE INDEX tenant_erased ON tenant (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX tenant_user_erased ON tenant_user (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE TRIGGER tenant_user_changed AFTER UPDATE ON tenant_user
    FOR EACH ROW EXECUTE FUNCTION notify_changed();
INSERT INTO sweep (name) VALUES ('erasures')
"""

ACCOUNT_STATUS = """
CREATE FUNCTION account_status(p_tenant_status text, p_user_status text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT CASE WHEN p_tenant_status <> 'active' THEN p_tenant_status
                WHEN p_user_status IN ('disabled', 'deleted') THEN 'user_' || p_user_status
                ELSE p_tenant_status END
$$
"""

FIND_CALLER = """
CREATE OR REPLACE FUNCTION find_caller(p_digest bytea)
RETURNS TABLE (
    id uuid, tenant_id uuid, user_id uuid, livemode boolean, scopes text[], models text[],
    expires_at timestamptz, revoked_at timestamptz, tenant_status text, continuity boolean,
    stores_prompts boolean, image_retention_seconds int
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT k.root_id, k.tenant_id, k.user_id, k.livemode, k.scopes, k.models, k.expires_at,
        k.revoked_at, account_status(t.status, u.status), t.continuity, t.stores_prompts,
        t.image_retention_seconds
    FROM api_key k
    JOIN tenant t ON t.id = k.tenant_id
    LEFT JOIN tenant_user u ON u.tenant_id = k.tenant_id AND u.id = k.user_id
    WHERE k.digest = p_digest
$$
"""

FIND_BY_CLAIMS = """
CREATE OR REPLACE FUNCTION find_caller_by_claims(
    p_tenant_id uuid, p_tenant_name text, p_user_name text, p_new_user_id uuid
)
RETURNS TABLE (
    tenant_id uuid, user_id uuid, tenant_status text, continuity boolean, stores_prompts boolean,
    image_retention_seconds int
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    t tenant;
    u tenant_user;
BEGIN
    SELECT * INTO t FROM tenant WHERE id = p_tenant_id;
    IF NOT FOUND THEN
        SELECT * INTO t FROM tenant WHERE name = p_tenant_name;
    END IF;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT * INTO u FROM tenant_user WHERE tenant_id = t.id AND name = p_user_name;
    IF NOT FOUND AND t.status = 'active' THEN
        INSERT INTO tenant_user (id, tenant_id, name) VALUES (p_new_user_id, t.id, p_user_name)
        ON CONFLICT (tenant_id, name) DO NOTHING;
        IF FOUND THEN
            INSERT INTO audit (id, actor_type, actor_id, action, tenant_id, object_id, after)
            VALUES (gen_random_uuid(), 'user', p_new_user_id::text, 'user.created', t.id,
                p_new_user_id::text, jsonb_build_object('name', p_user_name));
        END IF;
        SELECT * INTO u FROM tenant_user WHERE tenant_id = t.id AND name = p_user_name;
    END IF;
    RETURN QUERY SELECT t.id, u.id, account_status(t.status, u.status), t.continuity,
        t.stores_prompts, t.image_retention_seconds;
END $$
"""

# The serving role may not write reservations, and answers hold the prompts that models revised.
ERASE_ANSWERS = """
CREATE FUNCTION erase_answers(p_tenant_id uuid, p_user_id uuid) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    WITH erased AS (
        UPDATE reservation SET answer = jsonb_set(answer, '{revised_prompts}', '[]')
        WHERE tenant_id = p_tenant_id AND (p_user_id IS NULL OR user_id = p_user_id)
            AND idempotency_key IS NOT NULL
            AND jsonb_array_length(answer -> 'revised_prompts') > 0
        RETURNING 1
    ) SELECT count(*) FROM erased
$$
"""

GRANTS = {
    "api_key": "UPDATE (name)",
    "tenant": "UPDATE (deleted_at)",
    "tenant_user": "UPDATE (name, status, deleted_at)",
    "data_key": "DELETE",
}


def upgrade() -> None:
    """Add the columns, replace the lookups, and let the serving role erase."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statement in (*COLUMNS.split(";"), ACCOUNT_STATUS, FIND_CALLER, FIND_BY_CLAIMS):
        op.execute(statement)
    op.execute(ERASE_ANSWERS)
    for table, rights in GRANTS.items():
        op.execute(f"GRANT {rights} ON {table} TO {ROLE}")
    op.execute("REVOKE ALL ON FUNCTION erase_answers(uuid, uuid) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION erase_answers(uuid, uuid) TO {ROLE}")
