"""The audit trail, budgets that can be removed, tenants that can be renamed, and further CHECKs.

The release before keeps working: nothing that it reads or writes has changed.
"""

from alembic import op

revision = "2026_11_21_05_audit"
down_revision = "2026_11_21_04_idempotency"

ROLE = "image_gateway_app"

AUDIT = """
CREATE TABLE audit (
    id UUID NOT NULL,
    at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    actor_type TEXT NOT NULL,
    actor_id TEXT NOT NULL,
    request_id TEXT,
    action TEXT NOT NULL,
    tenant_id UUID,
    object_id TEXT NOT NULL,
    before JSONB,
    after JSONB,
    PRIMARY KEY (id)
);
CREATE INDEX audit_at ON audit (at, id);
CREATE INDEX audit_tenant ON audit (tenant_id, at, id);
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
"""

ISOLATION = f"""
ALTER TABLE audit ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON audit TO {ROLE} USING (
    tenant_id = nullif(current_setting('gateway.tenant_id', true), '')::uuid
    OR current_setting('gateway.operator', true) = 'on'
);
CREATE POLICY owner ON audit TO CURRENT_USER USING (true)
"""

BUDGET = """
ALTER TABLE budget
    ADD COLUMN removed_at TIMESTAMP WITH TIME ZONE,
    ADD CONSTRAINT budget_removed CHECK (removed_at IS NULL OR limit_nano = 1000000000000000000)
"""

# NOT VALID: holds for every line from now on. What is there was written by the money functions
# under the same rules, and reading it all again would keep the gateway waiting.
CHECKS = """
ALTER TABLE price ADD CONSTRAINT price_bounded CHECK (greatest(text_input_nano, image_input_nano,
    image_output_nano, text_output_nano, per_image_nano) <= 10000000000000);
ALTER TABLE budget_period ADD CONSTRAINT budget_period_bounds
    CHECK (ceiling_nano >= 0 AND breach_nano >= 0) NOT VALID;
ALTER TABLE reservation ADD CONSTRAINT reservation_final_not_negative
    CHECK (final_nano >= 0) NOT VALID;
ALTER TABLE ledger ADD CONSTRAINT ledger_amount
    CHECK (amount_nano >= 0 OR kind = 'adjust') NOT VALID
"""

# Few rows ever: the index makes what is still open findable among millions.
ESTIMATED = "CREATE INDEX reservation_estimated ON reservation (id) WHERE state = 'posted_est'"

# `at` is not among them: the database's clock alone says when.
GRANTS = {
    "audit": "SELECT, INSERT (id, actor_type, actor_id, request_id, action, tenant_id, object_id, before, after)",
    "budget": "UPDATE (removed_at)",
    "tenant": "UPDATE (name)",
}


def upgrade() -> None:
    """Create the table; add columns, constraints, an index and rights."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for script in (AUDIT, ISOLATION, BUDGET, CHECKS, ESTIMATED):
        for statement in script.split(";"):
            op.execute(statement)
    for table, rights in GRANTS.items():
        op.execute(f"GRANT {rights} ON {table} TO {ROLE}")
