"""Limits of requests and images per minute and of generations at once, for tenants, users and keys.

The release before keeps working: it does not look at them.
"""

from alembic import op

revision = "2026_11_21_06_rate_limits"
down_revision = "2026_11_21_05_audit"

ROLE = "image_gateway_app"

RATE_LIMIT = """
CREATE TABLE rate_limit (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    tenant_id UUID NOT NULL,
    api_key_id UUID,
    user_id UUID,
    livemode BOOLEAN NOT NULL,
    kind TEXT NOT NULL,
    value BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT rate_limit_owner
        UNIQUE NULLS NOT DISTINCT (tenant_id, api_key_id, user_id, livemode, kind),
    CONSTRAINT rate_limit_kind CHECK (kind IN ('requests', 'images', 'concurrent')),
    CONSTRAINT rate_limit_value CHECK (value BETWEEN 0 AND 1000000000),
    CONSTRAINT rate_limit_one_owner CHECK (api_key_id IS NULL OR user_id IS NULL),
    FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT,
    CONSTRAINT rate_limit_own_user FOREIGN KEY(tenant_id, user_id)
        REFERENCES tenant_user (tenant_id, id) ON DELETE RESTRICT,
    CONSTRAINT rate_limit_own_key FOREIGN KEY(tenant_id, api_key_id)
        REFERENCES api_key (tenant_id, id) ON DELETE RESTRICT
)
"""

ISOLATION = f"""
ALTER TABLE rate_limit ENABLE ROW LEVEL SECURITY;
ALTER TABLE rate_limit FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON rate_limit TO {ROLE} USING (
    tenant_id = nullif(current_setting('gateway.tenant_id', true), '')::uuid
    OR current_setting('gateway.operator', true) = 'on');
CREATE POLICY owner ON rate_limit TO CURRENT_USER USING (true)
"""

CHANGED = """
CREATE TRIGGER rate_limit_changed AFTER INSERT OR UPDATE OR DELETE ON rate_limit
    FOR EACH ROW EXECUTE FUNCTION notify_changed()
"""

# Read together with a caller, before a transaction is bound to its tenant: a line for each limit.
LIMITS_OF = """
CREATE FUNCTION limits_of(
    p_tenant_id uuid, p_api_key_id uuid, p_user_id uuid, p_livemode boolean
) RETURNS text[] LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT coalesce(array_agg(concat_ws(' ',
        CASE WHEN l.api_key_id IS NOT NULL THEN 'key'
             WHEN l.user_id IS NOT NULL THEN 'user' ELSE 'tenant' END,
        l.kind, l.value) ORDER BY l.id), '{}')
    FROM rate_limit l
    WHERE l.tenant_id = p_tenant_id AND l.livemode = p_livemode
        AND (l.api_key_id IS NULL OR l.api_key_id = p_api_key_id)
        AND (l.user_id IS NULL OR l.user_id = p_user_id)
$$
"""

SIGNATURE = "limits_of(uuid, uuid, uuid, boolean)"


def upgrade() -> None:
    """Add the table, who may see it, and what callers are found with."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statement in (RATE_LIMIT, *ISOLATION.split(";"), CHANGED, LIMITS_OF):
        op.execute(statement)
    op.execute(f"GRANT SELECT, INSERT, UPDATE (value, updated_at), DELETE ON rate_limit TO {ROLE}")
    op.execute(f"REVOKE ALL ON FUNCTION {SIGNATURE} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {SIGNATURE} TO {ROLE}")
