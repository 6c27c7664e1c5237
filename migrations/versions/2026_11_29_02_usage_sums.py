"""Sums of the ledger for reports. All lines so far are queued: the first worker adds them up."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_29_02_usage_sums"
down_revision = "2026_11_29_01_baseline"

TABLES = """
-- Releases that did not record the time of admission counted a line at its own.
ALTER TABLE ledger DISABLE TRIGGER USER;
UPDATE ledger SET admitted_at = at WHERE admitted_at IS NULL;
ALTER TABLE ledger ENABLE TRIGGER USER;
ALTER TABLE ledger ALTER COLUMN admitted_at SET NOT NULL;
DROP INDEX ledger_report;
-- A plain column: row-level security keeps an expression from being looked up in an index.
CREATE INDEX ledger_report ON ledger (tenant_id, livemode, admitted_at) WHERE kind <> 'hold';
CREATE TABLE usage_slot (
    tenant_id uuid NOT NULL REFERENCES tenant (id) ON DELETE RESTRICT,
    livemode boolean NOT NULL,
    slot timestamptz NOT NULL,
    requested_model text NOT NULL,
    served_model text NOT NULL,
    provider text NOT NULL,
    operation text NOT NULL,
    credential text NOT NULL,
    calls bigint NOT NULL,
    requests bigint NOT NULL,
    images bigint NOT NULL,
    text_input_tokens bigint NOT NULL,
    image_input_tokens bigint NOT NULL,
    text_output_tokens bigint NOT NULL,
    image_output_tokens bigint NOT NULL,
    amount_nano bigint NOT NULL,
    CONSTRAINT usage_slot_not_negative CHECK (amount_nano >= 0),
    PRIMARY KEY (tenant_id, livemode, slot, requested_model, served_model, provider, operation, credential)
);
CREATE TABLE usage_day (
    tenant_id uuid NOT NULL REFERENCES tenant (id) ON DELETE RESTRICT,
    livemode boolean NOT NULL,
    day date NOT NULL,
    requested_model text NOT NULL,
    served_model text NOT NULL,
    provider text NOT NULL,
    operation text NOT NULL,
    credential text NOT NULL,
    calls bigint NOT NULL,
    requests bigint NOT NULL,
    images bigint NOT NULL,
    text_input_tokens bigint NOT NULL,
    image_input_tokens bigint NOT NULL,
    text_output_tokens bigint NOT NULL,
    image_output_tokens bigint NOT NULL,
    amount_nano bigint NOT NULL,
    CONSTRAINT usage_day_not_negative CHECK (amount_nano >= 0),
    PRIMARY KEY (tenant_id, livemode, day, requested_model, served_model, provider, operation, credential)
);
CREATE INDEX usage_day_of_all ON usage_day (day, livemode);
CREATE TABLE usage_owner_day (
    tenant_id uuid NOT NULL REFERENCES tenant (id) ON DELETE RESTRICT,
    livemode boolean NOT NULL,
    day date NOT NULL,
    api_key_id uuid,
    user_id uuid,
    requested_model text NOT NULL,
    served_model text NOT NULL,
    provider text NOT NULL,
    operation text NOT NULL,
    credential text NOT NULL,
    calls bigint NOT NULL,
    requests bigint NOT NULL,
    images bigint NOT NULL,
    text_input_tokens bigint NOT NULL,
    image_input_tokens bigint NOT NULL,
    text_output_tokens bigint NOT NULL,
    image_output_tokens bigint NOT NULL,
    amount_nano bigint NOT NULL,
    CONSTRAINT usage_owner_day_not_negative CHECK (amount_nano >= 0),
    CONSTRAINT usage_owner_day_group UNIQUE NULLS NOT DISTINCT (
        tenant_id, livemode, day, api_key_id, user_id, requested_model, served_model, provider, operation, credential
    )
);
CREATE INDEX usage_owner_day_of_all ON usage_owner_day (day, livemode);
CREATE TABLE usage_pending (
    tenant_id uuid NOT NULL,
    reservation_id uuid NOT NULL,
    seq smallint NOT NULL,
    PRIMARY KEY (tenant_id, reservation_id, seq)
);
CREATE TABLE usage_stale (
    tenant_id uuid PRIMARY KEY REFERENCES tenant (id) ON DELETE CASCADE
);
INSERT INTO usage_pending (tenant_id, reservation_id, seq)
SELECT tenant_id, reservation_id, seq FROM ledger WHERE kind <> 'hold';
INSERT INTO sweep (name, due_at) VALUES
    ('usage', now()), ('invariants', now() + interval '1 hour');

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY[
        'usage_slot', 'usage_day', 'usage_owner_day', 'usage_pending', 'usage_stale'
    ] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', v_table);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', v_table);
        EXECUTE format(
            'CREATE POLICY tenant_isolation ON %I TO image_gateway_app USING ('
            'tenant_id = nullif(current_setting(''gateway.tenant_id'', true), '''')::uuid'
            ' OR current_setting(''gateway.operator'', true) = ''on'')', v_table);
        EXECUTE format('CREATE POLICY owner ON %I TO CURRENT_USER USING (true)', v_table);
        EXECUTE format('GRANT SELECT ON %I TO image_gateway_app', v_table);
    END LOOP;
END $$;
"""


def upgrade() -> None:
    """Create the tables and queue the ledger's lines."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), TABLES)
