"""The request log: a table in partitions of a day, its only writers, and its sweep.

The release before keeps working: it knows nothing of the table.
"""

from alembic import op

revision = "2026_11_28_04_request_log"
down_revision = "2026_11_28_01_admin_keys"

ROLE = "image_gateway_app"

TABLE = f"""
CREATE TABLE request_log (
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    id TEXT NOT NULL,
    tenant_id UUID,
    livemode BOOLEAN,
    api_key_id UUID,
    user_id UUID,
    operator_key_id UUID,
    client_request_id TEXT,
    trace_id TEXT,
    method TEXT NOT NULL,
    route TEXT NOT NULL,
    tool TEXT,
    status SMALLINT NOT NULL,
    error_code TEXT,
    error_param TEXT,
    reason TEXT,
    requested_model TEXT,
    served_model TEXT,
    generation_id UUID,
    replayed BOOLEAN,
    provider TEXT,
    credential TEXT,
    provider_status SMALLINT,
    provider_request_id TEXT,
    provider_milliseconds BIGINT,
    cost_nano BIGINT,
    cost_status TEXT,
    milliseconds BIGINT NOT NULL,
    PRIMARY KEY (at, id)
) PARTITION BY RANGE (at);
CREATE INDEX request_log_tenant ON request_log (tenant_id, livemode, at, id);
CREATE INDEX request_log_client_request_id ON request_log (client_request_id)
    WHERE client_request_id IS NOT NULL;
CREATE INDEX request_log_generation ON request_log (generation_id) WHERE generation_id IS NOT NULL;
ALTER TABLE request_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE request_log FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON request_log TO {ROLE} USING (
    tenant_id = nullif(current_setting('gateway.tenant_id', true), '')::uuid
    OR current_setting('gateway.operator', true) = 'on'
);
CREATE POLICY owner ON request_log TO CURRENT_USER USING (true)
"""

SWEEP = "INSERT INTO sweep (name) VALUES ('request_log')"

# A partition cannot be read by its own name: it has row-level security, no policy and no grants.
ADD_DAY = """
CREATE FUNCTION add_request_log_day(p_day date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_name text := 'request_log_' || to_char(p_day, 'YYYYMMDD');
BEGIN
    IF to_regclass(format('public.%I', v_name)) IS NOT NULL THEN
        RETURN;
    END IF;
    -- A waiting table lock would keep readers waiting behind it.
    PERFORM set_config('lock_timeout', '1s', true);
    PERFORM pg_advisory_xact_lock(hashtextextended('request_log', 0));
    EXECUTE format(
        'CREATE TABLE public.%I PARTITION OF public.request_log FOR VALUES FROM (%L) TO (%L)',
        v_name, p_day::timestamp AT TIME ZONE 'UTC', (p_day + 1)::timestamp AT TIME ZONE 'UTC');
    EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', v_name);
EXCEPTION
    -- Another session made it while this one waited: to look again would ask a stale cache.
    WHEN duplicate_table OR unique_violation THEN NULL;
END $$
"""

# A batch that is sent twice, since its acknowledgement was lost, adds nothing the second time.
# Only days around the present get partitions, whatever clock a gateway has.
RECORD = """
CREATE FUNCTION record_requests(p_rows jsonb) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_day date;
    v_refused int;
BEGIN
    -- A crash of Postgres may lose the last moments of this log; the ledger it cannot lose.
    PERFORM set_config('synchronous_commit', 'off', true);
    FOR v_day IN
        SELECT DISTINCT (r.at AT TIME ZONE 'UTC')::date FROM jsonb_to_recordset(p_rows) AS r(at timestamptz)
        WHERE r.at BETWEEN now() - interval '7 days' AND now() + interval '2 days'
    LOOP
        PERFORM add_request_log_day(v_day);
    END LOOP;
    INSERT INTO request_log SELECT
        r.at, r.request_id, r.tenant_id, r.livemode, r.api_key_id, r.user_id, r.operator_key_id,
        r.client_request_id, r.trace_id, r.method, r.route, r.tool, r.status, r.error_code,
        r.error_param, r.reason, r.requested_model, r.served_model, r.generation_id, r.replayed,
        r.provider, r.credential, r.provider_status, r.provider_request_id, r.provider_milliseconds,
        r.cost_nano, r.cost_status, r.milliseconds
    FROM jsonb_to_recordset(p_rows) AS r(
        at timestamptz, request_id text, tenant_id uuid, livemode boolean, api_key_id uuid,
        user_id uuid, operator_key_id uuid, client_request_id text, trace_id text, method text,
        route text, tool text, status smallint, error_code text, error_param text, reason text,
        requested_model text, served_model text, generation_id uuid, replayed boolean,
        provider text, credential text, provider_status smallint, provider_request_id text,
        provider_milliseconds bigint, cost_nano bigint, cost_status text, milliseconds bigint)
    WHERE r.at BETWEEN now() - interval '7 days' AND now() + interval '2 days'
    ON CONFLICT DO NOTHING;
    SELECT count(*) INTO v_refused FROM jsonb_to_recordset(p_rows) AS r(at timestamptz)
    WHERE r.at NOT BETWEEN now() - interval '7 days' AND now() + interval '2 days';
    RETURN v_refused;
END $$
"""

KEEP = """
CREATE FUNCTION keep_request_log(p_days int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_today date := (now() AT TIME ZONE 'UTC')::date;
    v_name text;
    v_dropped int := 0;
BEGIN
    PERFORM set_config('lock_timeout', '1s', true);
    FOR v_ahead IN 0..3 LOOP
        PERFORM add_request_log_day(v_today + v_ahead);
    END LOOP;
    FOR v_name IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'public.request_log'::regclass
            AND c.relname < 'request_log_' || to_char(v_today - greatest(p_days, 1), 'YYYYMMDD')
    LOOP
        EXECUTE format('DROP TABLE public.%I', v_name);
        v_dropped := v_dropped + 1;
    END LOOP;
    RETURN v_dropped;
END $$
"""

FORGET = """
CREATE FUNCTION forget_requests(p_tenant_id uuid) RETURNS int
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    WITH gone AS (DELETE FROM request_log WHERE tenant_id = p_tenant_id RETURNING 1)
    SELECT count(*)::int FROM gone
$$
"""

FUNCTIONS = ("record_requests(jsonb)", "keep_request_log(int)", "forget_requests(uuid)")


def upgrade() -> None:
    """Create table and functions."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statement in TABLE.split(";"):
        op.execute(statement)
    for function in (SWEEP, ADD_DAY, RECORD, KEEP, FORGET):
        op.execute(function)
    op.execute("REVOKE ALL ON FUNCTION add_request_log_day(date) FROM PUBLIC")
    op.execute(f"GRANT SELECT ON request_log TO {ROLE}")
    for function in FUNCTIONS:
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {ROLE}")
