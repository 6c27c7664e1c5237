"""Months of the ledger can be archived: their sums stay, apart from those of kept entries."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_11_archived_months"
down_revision = "2026_11_30_10_image_provenance"

TABLES = """
CREATE TABLE archived_month (
    month date PRIMARY KEY,
    below_id uuid NOT NULL,
    lines bigint NOT NULL,
    last_admitted_at timestamptz,
    archived_at timestamptz DEFAULT now() NOT NULL
);
CREATE TABLE archived_usage (
    tenant_id uuid NOT NULL REFERENCES tenant (id) ON DELETE RESTRICT,
    month date NOT NULL,
    livemode boolean NOT NULL,
    lines bigint NOT NULL,
    held_nano bigint NOT NULL,
    calls bigint NOT NULL,
    requests bigint NOT NULL,
    images bigint NOT NULL,
    text_input_tokens bigint NOT NULL,
    image_input_tokens bigint NOT NULL,
    text_output_tokens bigint NOT NULL,
    image_output_tokens bigint NOT NULL,
    amount_nano bigint NOT NULL,
    PRIMARY KEY (tenant_id, month, livemode),
    CONSTRAINT archived_usage_not_negative CHECK (held_nano >= 0 AND amount_nano >= 0)
);
ALTER TABLE archived_usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE archived_usage FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON archived_usage TO image_gateway_app USING (
    tenant_id = nullif(current_setting('gateway.tenant_id', true), '')::uuid);
CREATE POLICY owner ON archived_usage TO CURRENT_USER USING (true);
GRANT SELECT ON archived_month, archived_usage TO image_gateway_app;
"""

# What is archived cannot be made anew, so it is in rows of its own.
SUMS = """
ALTER TABLE usage_slot
    ADD COLUMN is_archived boolean DEFAULT false NOT NULL,
    DROP CONSTRAINT usage_slot_pkey,
    ADD PRIMARY KEY (tenant_id, livemode, slot, requested_model, served_model, provider, operation,
        credential, is_archived);
ALTER TABLE usage_day
    ADD COLUMN is_archived boolean DEFAULT false NOT NULL,
    DROP CONSTRAINT usage_day_pkey,
    ADD PRIMARY KEY (tenant_id, livemode, day, requested_model, served_model, provider, operation,
        credential, is_archived);
ALTER TABLE usage_owner_day
    ADD COLUMN is_archived boolean DEFAULT false NOT NULL,
    DROP CONSTRAINT usage_owner_day_group,
    ADD CONSTRAINT usage_owner_day_group UNIQUE NULLS NOT DISTINCT (
        tenant_id, livemode, day, api_key_id, user_id, requested_model, served_model, provider,
        operation, credential, is_archived);
"""


def upgrade() -> None:
    """Create the tables of archived months, and mark the sums of what is archived."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    connection = op.get_bind()
    for script in (TABLES, SUMS):
        run_script(connection, script)
