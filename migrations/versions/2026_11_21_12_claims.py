"""Which idempotency keys are claimed, for many requests in one statement.

The release before keeps working: it does not call this.
"""

from alembic import op

revision = "2026_11_21_12_claims"
down_revision = "2026_11_21_11_token_users"

ROLE = "image_gateway_app"

# Each names its tenant, and learns nothing but whether its own key is there.
CLAIMS_MADE = """
CREATE FUNCTION claims_made(p_claims jsonb) RETURNS SETOF int
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
BEGIN
    RETURN QUERY SELECT c.number
    FROM jsonb_to_recordset(p_claims) AS c(
        number int, tenant_id uuid, user_id uuid, livemode boolean, operation text, key text)
    WHERE EXISTS (
        SELECT 1 FROM reservation o
        WHERE o.tenant_id = c.tenant_id AND o.user_id IS NOT DISTINCT FROM c.user_id
            AND o.livemode = c.livemode AND o.operation = c.operation
            AND o.idempotency_key = c.key
    );
END $$
"""

SIGNATURE = "claims_made(jsonb)"


def upgrade() -> None:
    """Add the function."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(CLAIMS_MADE)
    op.execute(f"REVOKE ALL ON FUNCTION {SIGNATURE} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {SIGNATURE} TO {ROLE}")
