-- The months of ledger and audit trail: one partition of each for a month in UTC.
--
-- The lines of a reservation are in the month of its id, a UUID of version 7: its
-- first 48 bits are milliseconds since 1970 by the clock of the gateway that made it. Audit entries
-- are in the month of their time.

-- The lowest id of a moment.
CREATE OR REPLACE FUNCTION first_id(p_at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM p_at) * 1000)::bigint), 12, '0')
        || repeat('0', 20))::uuid
$$;

-- Create a partition from one value to another, unless it exists.
--
-- It is made by itself and then attached, during which readers need not wait; writers do for a
-- moment, because of foreign keys.
CREATE OR REPLACE FUNCTION add_month_of(p_table text, p_month date, p_low text, p_high text)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_name text := p_table || to_char(p_month, '_YYYYMM');
BEGIN
    IF to_regclass(format('public.%I', v_name)) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING ALL)', v_name, p_table);
    EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
        p_table, v_name, p_low, p_high);
END $$;

-- Protect the partitions as their tables are: row-level security without a policy, so that rows are
-- read through the table alone, and append-only triggers, which a statement on a partition itself
-- would not ask otherwise.
CREATE OR REPLACE FUNCTION guard_months() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    c record;
BEGIN
    FOR c IN
        SELECT i.inhrelid::regclass AS name, r.relrowsecurity AS is_secure,
            EXISTS (SELECT 1 FROM pg_trigger t WHERE t.tgrelid = i.inhrelid
                AND t.tgname = 'append_only') AS is_guarded
        FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent
        JOIN pg_class r ON r.oid = i.inhrelid
        WHERE p.relname IN ('ledger', 'audit') AND r.relkind = 'r'
            AND p.relnamespace = 'public'::regnamespace
    LOOP
        IF NOT c.is_secure THEN
            EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', c.name);
        END IF;
        IF NOT c.is_guarded THEN
            EXECUTE format('CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON %s'
                ' FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', c.name);
        END IF;
    END LOOP;
END $$;

-- Create a month's partitions. Waits at most a second for each lock.
CREATE OR REPLACE FUNCTION add_month(p_month date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_low timestamptz := date_trunc('month', p_month::timestamp) AT TIME ZONE 'UTC';
    v_high timestamptz := (date_trunc('month', p_month::timestamp) + interval '1 month')
        AT TIME ZONE 'UTC';
BEGIN
    PERFORM set_config('lock_timeout', '1s', true);
    PERFORM pg_advisory_xact_lock(hashtextextended('months', 0));
    PERFORM add_month_of('ledger', p_month, first_id(v_low)::text, first_id(v_high)::text);
    PERFORM add_month_of('audit', p_month, v_low::text, v_high::text);
    PERFORM guard_months();
END $$;

-- Create the partitions that are missing from the last month to the next two; returns the number of
-- such months.
CREATE OR REPLACE FUNCTION add_missing_months() RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_month date;
    v_added int := 0;
BEGIN
    FOR v_month IN
        SELECT date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => n)
        FROM generate_series(-1, 2) n
    LOOP
        CONTINUE WHEN to_regclass(to_char(v_month, '"public.ledger_"YYYYMM')) IS NOT NULL
            AND to_regclass(to_char(v_month, '"public.audit_"YYYYMM')) IS NOT NULL;
        PERFORM add_month(v_month);
        v_added := v_added + 1;
    END LOOP;
    RETURN v_added;
END $$;

SELECT guard_months();

REVOKE ALL ON FUNCTION add_month_of(text, date, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION guard_months() FROM PUBLIC;
REVOKE ALL ON FUNCTION add_month(date) FROM PUBLIC;
REVOKE ALL ON FUNCTION add_missing_months() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION add_missing_months() TO image_gateway_app;
