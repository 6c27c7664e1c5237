"""A user who comes into being with his first token is in the audit trail, like every other.

The release before keeps working: it calls the same function.
"""

from alembic import op

revision = "2026_11_21_11_token_users"
down_revision = "2026_11_21_10_house_budgets"

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
        IF FOUND THEN
            INSERT INTO audit (id, actor_type, actor_id, action, tenant_id, object_id, after)
            VALUES (gen_random_uuid(), 'user', p_new_user_id::text, 'user.created', t.id,
                p_new_user_id::text, jsonb_build_object('name', p_user_name));
        END IF;
        SELECT u.id INTO v_user_id FROM tenant_user u
        WHERE u.tenant_id = t.id AND u.name = p_user_name;
    END IF;
    RETURN QUERY SELECT t.id, v_user_id, t.status, t.continuity, t.stores_prompts,
        t.image_retention_seconds;
END $$
"""


def upgrade() -> None:
    """Replace the function."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(FIND_BY_CLAIMS)
