"""Ledger and audit trail in partitions by month; existing rows are moved."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_09_monthly_partitions"
down_revision = "2026_11_30_08_checked_books"

# All views are made again from their files after the migrations.
OUTDATED = """
DO $$
DECLARE
    v_view text;
BEGIN
    FOR v_view IN
        SELECT relname FROM pg_class
        WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace
    LOOP
        EXECUTE format('DROP VIEW IF EXISTS public.%I CASCADE', v_view);
    END LOOP;
END $$;
DELETE FROM applied_sql;
"""

# A plain table cannot become a partitioned one, so each is made anew beside it.
MOVE_AWAY = """
ALTER TABLE ledger DROP CONSTRAINT ledger_own_reservation;
DO $$
DECLARE
    v_table text;
    v_index text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['ledger', 'audit'] LOOP
        EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', v_table, v_table || '_pkey');
        FOR v_index IN
            SELECT i.indexrelid::regclass FROM pg_index i WHERE i.indrelid = v_table::regclass
        LOOP
            EXECUTE format('DROP INDEX %s', v_index);
        END LOOP;
        EXECUTE format('ALTER TABLE %I RENAME TO %I', v_table, 'old_' || v_table);
    END LOOP;
END $$;
"""

TABLES = """
CREATE TABLE ledger (
    LIKE old_ledger INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    PRIMARY KEY (tenant_id, reservation_id, seq),
    CONSTRAINT ledger_own_reservation FOREIGN KEY (tenant_id, reservation_id)
        REFERENCES reservation (tenant_id, id) ON DELETE RESTRICT
) PARTITION BY RANGE (reservation_id);
CREATE INDEX ledger_report ON ledger (tenant_id, livemode, admitted_at) WHERE kind <> 'hold';
CREATE INDEX ledger_reservation ON ledger USING brin (reservation_id)
    WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX ledger_admitted ON ledger USING brin (admitted_at) WITH (autosummarize = on);
CREATE TABLE audit (
    LIKE old_audit INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    PRIMARY KEY (id, at)
) PARTITION BY RANGE (at);
CREATE INDEX audit_at ON audit (at, id);
CREATE INDEX audit_tenant ON audit (tenant_id, at, id);
"""

# The months of the existing rows, and from the last one to the next two.
MONTHS = """
CREATE FUNCTION pg_temp.first_id(p_at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM p_at) * 1000)::bigint), 12, '0')
        || repeat('0', 20))::uuid
$$;
DO $$
DECLARE
    v_start timestamp;
    v_low timestamptz;
    v_high timestamptz;
BEGIN
    IF EXISTS (
        SELECT 1 FROM old_ledger
        WHERE reservation_id >= pg_temp.first_id(now() + interval '1 month')
    ) THEN
        RAISE EXCEPTION 'a reservation has an id of the future: was it made by a gateway?';
    END IF;
    FOR v_start IN
        SELECT DISTINCT date_trunc('month', to_timestamp(
            ('x' || left(replace(reservation_id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
            AT TIME ZONE 'UTC') FROM old_ledger
        UNION SELECT DISTINCT date_trunc('month', at AT TIME ZONE 'UTC') FROM old_audit
        UNION SELECT date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => n)
        FROM generate_series(-1, 2) n
    LOOP
        v_low := v_start AT TIME ZONE 'UTC';
        v_high := (v_start + interval '1 month') AT TIME ZONE 'UTC';
        EXECUTE format('CREATE TABLE %I PARTITION OF ledger FOR VALUES FROM (%L) TO (%L)',
            to_char(v_start, '"ledger_"YYYYMM'), pg_temp.first_id(v_low),
            pg_temp.first_id(v_high));
        EXECUTE format('CREATE TABLE %I PARTITION OF audit FOR VALUES FROM (%L) TO (%L)',
            to_char(v_start, '"audit_"YYYYMM'), v_low, v_high);
    END LOOP;
END $$;
"""

MOVE = """
INSERT INTO ledger SELECT * FROM old_ledger;
INSERT INTO audit SELECT * FROM old_audit;
DROP TABLE old_audit, old_ledger;
INSERT INTO sweep (name) VALUES ('months') ON CONFLICT DO NOTHING;
"""

ACCESS = """
DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['ledger', 'audit'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', v_table);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', v_table);
        EXECUTE format(
            'CREATE POLICY tenant_isolation ON %I TO image_gateway_app USING ('
            'tenant_id = nullif(current_setting(''gateway.tenant_id'', true), '''')::uuid)',
            v_table);
        EXECUTE format('CREATE POLICY owner ON %I TO CURRENT_USER USING (true)', v_table);
    END LOOP;
END $$;
GRANT SELECT ON ledger TO image_gateway_app;
GRANT SELECT, INSERT (id, actor_type, actor_id, request_id, action, tenant_id, object_id, before,
    after, actor_name) ON audit TO image_gateway_app;
"""


def upgrade() -> None:
    """Make the partitioned tables and move the rows."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    connection = op.get_bind()
    for script in (OUTDATED, MOVE_AWAY, TABLES, MONTHS, MOVE, ACCESS):
        run_script(connection, script)
