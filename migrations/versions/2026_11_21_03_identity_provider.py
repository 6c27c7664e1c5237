"""Callers without an API key: whoever the operator's identity provider vouches for.

The release before keeps working: it writes a key into every line. How `reserve` tells callers without
a key apart comes with the next revision, which replaces it.
"""

from alembic import op

revision = "2026_11_21_03_identity_provider"
down_revision = "2026_11_21_02_prices_per_image"

ROLE = "image_gateway_app"

# A token is checked before it gets here, and its claims name tenant and user: the second lookup that
# crosses tenants, by the tenant's id or name only. Users come into being with their first token.
FIND_BY_CLAIMS = """
CREATE FUNCTION find_caller_by_claims(
    p_tenant_id uuid, p_tenant_name text, p_user_name text, p_new_user_id uuid
)
RETURNS TABLE (
    tenant_id uuid, user_id uuid, tenant_status text, continuity boolean, stores_prompts boolean,
    image_retention_seconds int
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    t tenant;
    v_user_id uuid;
BEGIN
    SELECT * INTO t FROM tenant WHERE id = p_tenant_id;
    IF NOT FOUND THEN
        SELECT * INTO t FROM tenant WHERE name = p_tenant_name;
    END IF;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT u.id INTO v_user_id FROM tenant_user u
    WHERE u.tenant_id = t.id AND u.name = p_user_name;
    IF NOT FOUND AND t.status = 'active' THEN
        INSERT INTO tenant_user (id, tenant_id, name) VALUES (p_new_user_id, t.id, p_user_name)
        ON CONFLICT (tenant_id, name) DO NOTHING;
        SELECT u.id INTO v_user_id FROM tenant_user u
        WHERE u.tenant_id = t.id AND u.name = p_user_name;
    END IF;
    RETURN QUERY SELECT t.id, v_user_id, t.status, t.continuity, t.stores_prompts,
        t.image_retention_seconds;
END $$
"""

SIGNATURE = "find_caller_by_claims(uuid, text, text, uuid)"


def upgrade() -> None:
    """Let lines be without a key, and find callers by tenant and user."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in ("reservation", "ledger"):
        op.execute(f"ALTER TABLE {table} ALTER COLUMN api_key_id DROP NOT NULL")
    op.execute(FIND_BY_CLAIMS)
    op.execute(f"REVOKE ALL ON FUNCTION {SIGNATURE} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {SIGNATURE} TO {ROLE}")
