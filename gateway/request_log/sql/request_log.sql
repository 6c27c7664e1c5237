-- The request log: one partition per day, written in batches, dropped after its retention.

-- Create the partition of a day. Waits at most a second for its locks.
CREATE OR REPLACE FUNCTION add_request_log_day(p_day date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_name text := 'request_log_' || to_char(p_day, 'YYYYMMDD');
BEGIN
    IF to_regclass(format('public.%I', v_name)) IS NOT NULL THEN
        RETURN;
    END IF;
    -- A waiting table lock blocks later readers.
    PERFORM set_config('lock_timeout', '1s', true);
    PERFORM pg_advisory_xact_lock(hashtextextended('request_log', 0));
    EXECUTE format(
        'CREATE TABLE public.%I PARTITION OF public.request_log FOR VALUES FROM (%L) TO (%L)',
        v_name, p_day::timestamp AT TIME ZONE 'UTC', (p_day + 1)::timestamp AT TIME ZONE 'UTC');
    EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', v_name);
EXCEPTION
    -- Another session created it meanwhile. Looking again would read this session's stale cache.
    WHEN duplicate_table OR unique_violation THEN NULL;
END $$;

-- Note the last use of each key in a batch, at most every half minute: an API key in steady use
-- would otherwise change its row with every batch. A page of the console is no use of the key that
-- opened its session.
CREATE OR REPLACE FUNCTION note_key_uses(p_rows jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, public, pg_temp AS $$
    INSERT INTO api_key_use AS u (tenant_id, api_key_id, last_used_at)
    SELECT r.tenant_id, r.api_key_id, max(r.at)
    FROM jsonb_to_recordset(p_rows) AS r(
        at timestamptz, tenant_id uuid, api_key_id uuid, session_id uuid)
    JOIN tenant t ON t.id = r.tenant_id
    WHERE r.api_key_id IS NOT NULL AND r.session_id IS NULL
        AND r.at BETWEEN now() - interval '7 days' AND now() + interval '2 days'
    GROUP BY 1, 2
    ORDER BY 1, 2  -- in one order, so that two batches cannot wait for each other
    ON CONFLICT (tenant_id, api_key_id) DO UPDATE SET last_used_at = excluded.last_used_at
    WHERE excluded.last_used_at >= u.last_used_at + interval '30 seconds'
$$;

-- Write a batch of records, given as JSON objects; returns the number refused because their
-- clock is off by more than a week back or two days ahead.
CREATE OR REPLACE FUNCTION record_requests(p_rows jsonb) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_day date;
    v_refused int;
BEGIN
    -- A crash of Postgres may lose the last moments of this log, unlike the ledger's.
    PERFORM set_config('synchronous_commit', 'off', true);
    FOR v_day IN
        SELECT DISTINCT (r.at AT TIME ZONE 'UTC')::date
        FROM jsonb_to_recordset(p_rows) AS r(at timestamptz)
        WHERE r.at BETWEEN now() - interval '7 days' AND now() + interval '2 days'
    LOOP
        PERFORM add_request_log_day(v_day);
    END LOOP;
    INSERT INTO request_log SELECT
        r.at, r.request_id, r.tenant_id, r.livemode, r.api_key_id, r.user_id, r.operator_key_id,
        r.client_request_id, r.trace_id, r.method, r.route, r.tool, r.status, r.error_code,
        r.error_param, r.reason, r.requested_model, r.served_model, r.generation_id, r.replayed,
        r.provider, r.credential, r.provider_status, r.provider_request_id, r.provider_milliseconds,
        r.cost_nano, r.cost_status, r.milliseconds, r.provider_calls, r.model_version, r.session_id
    FROM jsonb_to_recordset(p_rows) AS r(
        at timestamptz, request_id text, tenant_id uuid, livemode boolean, api_key_id uuid,
        user_id uuid, operator_key_id uuid, client_request_id text, trace_id text, method text,
        route text, tool text, status smallint, error_code text, error_param text, reason text,
        requested_model text, served_model text, generation_id uuid, replayed boolean,
        provider text, credential text, provider_status smallint, provider_request_id text,
        provider_milliseconds bigint, cost_nano bigint, cost_status text, milliseconds bigint,
        provider_calls smallint, model_version text, session_id uuid)
    WHERE r.at BETWEEN now() - interval '7 days' AND now() + interval '2 days'
    ON CONFLICT DO NOTHING;
    PERFORM note_key_uses(p_rows);
    SELECT count(*) INTO v_refused FROM jsonb_to_recordset(p_rows) AS r(at timestamptz)
    WHERE r.at NOT BETWEEN now() - interval '7 days' AND now() + interval '2 days';
    RETURN v_refused;
END $$;

-- Create the partitions of the next days and drop those older than p_days; returns the number.
CREATE OR REPLACE FUNCTION keep_request_log(p_days int) RETURNS int
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
END $$;

-- Delete a tenant's records; returns their number.
CREATE OR REPLACE FUNCTION forget_requests(p_tenant_id uuid) RETURNS int
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    WITH gone AS (DELETE FROM request_log WHERE tenant_id = p_tenant_id RETURNING 1)
    SELECT count(*)::int FROM gone
$$;

REVOKE ALL ON FUNCTION add_request_log_day(date) FROM PUBLIC;
REVOKE ALL ON FUNCTION note_key_uses(jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION record_requests(jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION keep_request_log(int) FROM PUBLIC;
REVOKE ALL ON FUNCTION forget_requests(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION record_requests(jsonb) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION keep_request_log(int) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION forget_requests(uuid) TO image_gateway_app;
