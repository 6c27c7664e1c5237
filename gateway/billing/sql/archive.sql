-- Archived months: the sums of a month's ledger lines are kept, its partition is dropped.
--
-- Months are archived one by one, the oldest first, each in one transaction. Reservations stay, so
-- budgets are checked as before. Sums of usage stay too; those of archived lines are moved into rows
-- of their own (is_archived), which are never made anew.

-- The months that the ledger has partitions for, with the bounds of their ids.
CREATE OR REPLACE FUNCTION ledger_months() RETURNS TABLE (
    month date, ends_at timestamptz, lowest uuid, below uuid, bytes bigint
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT m.month, e.ends_at, first_id(m.month::timestamp AT TIME ZONE 'UTC'),
        first_id(e.ends_at), pg_total_relation_size(m.name)
    FROM (
        SELECT i.inhrelid::regclass AS name, to_date(right(c.relname, 6), 'YYYYMM') AS month
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'public.ledger'::regclass
    ) m
    CROSS JOIN LATERAL (
        SELECT (m.month + interval '1 month') AT TIME ZONE 'UTC' AS ends_at
    ) e
    ORDER BY m.month
$$;

-- Why a month cannot be archived now; NULL, if it can.
--
--   missing    there is no such month
--   recent     it ended less than two months ago: budgets' windows may lie in it, and its costs are
--              still corrected
--   earlier    an earlier month is kept
--   open       the cost of a call is unknown
--   unsummed   lines or time zones are waiting for the sums of usage
--   unchecked  the books have not been checked beyond it
CREATE OR REPLACE FUNCTION archive_obstacle(p_month date) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    m record;
BEGIN
    SELECT * INTO m FROM ledger_months() x WHERE x.month = p_month;
    RETURN CASE
        WHEN m.month IS NULL THEN 'missing'
        WHEN now() < m.ends_at + interval '2 months' THEN 'recent'
        WHEN EXISTS (SELECT 1 FROM ledger_months() x WHERE x.month < p_month) THEN 'earlier'
        WHEN EXISTS (
            SELECT 1 FROM reservation r WHERE r.state IN ('held', 'unknown')
                AND r.id >= m.lowest AND r.id < m.below) THEN 'open'
        WHEN EXISTS (
            SELECT 1 FROM usage_pending p
            WHERE p.reservation_id >= m.lowest AND p.reservation_id < m.below)
            OR EXISTS (SELECT 1 FROM usage_stale) THEN 'unsummed'
        WHEN NOT coalesce((
            SELECT s.compared_to >= m.ends_at + interval '7 days' FROM sweep s
            WHERE s.name = 'invariants'), false) THEN 'unchecked'
    END;
END $$;

-- Sum the lines of a month by everything that sums of usage are kept by, in one snapshot.
CREATE OR REPLACE FUNCTION sum_month(p_lowest uuid, p_below uuid) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    CREATE TEMPORARY TABLE archiving ON COMMIT DROP AS
    SELECT u.tenant_id, u.livemode, usage_slot_of(u.admitted_at) AS slot,
        (u.admitted_at AT TIME ZONE t.time_zone)::date AS day, t.time_zone AS zone, u.api_key_id,
        u.user_id, u.requested_model, u.served_model, u.provider, u.operation, u.credential,
        sum(u.calls) AS calls, sum(u.requests) AS requests, sum(u.images) AS images,
        sum(u.text_input_tokens) AS text_input_tokens,
        sum(u.image_input_tokens) AS image_input_tokens,
        sum(u.text_output_tokens) AS text_output_tokens,
        sum(u.image_output_tokens) AS image_output_tokens, sum(u.amount_nano) AS amount_nano,
        max(u.admitted_at) AS last_admitted_at
    FROM usage_line u JOIN tenant t ON t.id = u.tenant_id
    WHERE u.reservation_id >= p_lowest AND u.reservation_id < p_below
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12;
    ANALYZE pg_temp.archiving;
END $$;

-- Refuse a month whose lines are not those of its reservations (I2, I3).
CREATE OR REPLACE FUNCTION check_month(p_lowest uuid, p_below uuid) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_id uuid;
BEGIN
    SELECT coalesce(r.id, l.reservation_id) INTO v_id
    FROM (
        SELECT x.tenant_id, x.id, x.final_nano, x.held_nano FROM reservation x
        WHERE x.id >= p_lowest AND x.id < p_below
    ) r
    FULL JOIN (
        SELECT x.tenant_id, x.reservation_id, count(*) FILTER (WHERE x.kind = 'hold') AS holds,
            count(*) FILTER (WHERE x.kind IN ('post', 'post_est', 'void')) AS ends,
            sum(x.amount_nano) FILTER (WHERE x.kind <> 'hold') AS total,
            sum(x.amount_nano) FILTER (WHERE x.kind = 'hold') AS held
        FROM ledger x WHERE x.reservation_id >= p_lowest AND x.reservation_id < p_below
        GROUP BY 1, 2
    ) l ON l.tenant_id = r.tenant_id AND l.reservation_id = r.id
    WHERE (l.holds, l.ends, l.total, l.held) IS DISTINCT FROM (1, 1, r.final_nano, r.held_nano)
    LIMIT 1;
    IF v_id IS NOT NULL THEN
        RAISE EXCEPTION 'the lines of call % do not add up: its month cannot be archived', v_id;
    END IF;
END $$;

-- Move what sum_month has summed from the sums of a table to its archived ones.
--
-- p_keys: the columns that it is summed by; p_zone, whether it has the time zone of its days. Fails
-- unless every sum is found.
CREATE OR REPLACE FUNCTION archive_sums(p_table text, p_keys text[], p_zone boolean) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_sums text[] := ARRAY['calls', 'requests', 'images', 'text_input_tokens',
        'image_input_tokens', 'text_output_tokens', 'image_output_tokens', 'amount_nano'];
    v_keys text := array_to_string(p_keys, ', ');
    v_zone text := CASE WHEN p_zone THEN ', zone' ELSE '' END;
    v_moved bigint;
    v_found bigint;
BEGIN
    EXECUTE format(
        'WITH moved AS MATERIALIZED (SELECT %1$s%2$s, %3$s FROM pg_temp.archiving GROUP BY %4$s),'
        ' taken AS (DELETE FROM %5$I s USING moved m WHERE %6$s AND NOT s.is_archived'
        ' RETURNING s.*),'
        ' rest AS (INSERT INTO %5$I (%1$s%7$s, %8$s) SELECT %9$s FROM taken s JOIN moved m ON %6$s'
        ' WHERE (%10$s) <> (%11$s)),'
        ' kept AS (INSERT INTO %5$I AS a (%1$s%7$s, %8$s, is_archived)'
        ' SELECT %1$s%7$s, %8$s, true FROM moved ON CONFLICT (%1$s, is_archived) DO UPDATE SET %12$s)'
        ' SELECT (SELECT count(*) FROM moved), (SELECT count(*) FROM taken)',
        v_keys,
        CASE WHEN p_zone THEN ', min(zone) AS zone' ELSE '' END,
        (SELECT string_agg(format('sum(%1$I)::bigint AS %1$I', c), ', ') FROM unnest(v_sums) c),
        v_keys,
        p_table,
        -- Keys and users may be NULL; an equality of texts can be hashed.
        (SELECT string_agg(CASE WHEN c IN ('api_key_id', 'user_id')
            THEN format('coalesce(s.%1$I::text, '''') = coalesce(m.%1$I::text, '''')', c)
            ELSE format('s.%1$I = m.%1$I', c) END, ' AND ') FROM unnest(p_keys) c),
        v_zone,
        array_to_string(v_sums, ', '),
        (SELECT string_agg('s.' || c, ', ') FROM unnest(p_keys) c)
            || CASE WHEN p_zone THEN ', s.zone' ELSE '' END || ', '
            || (SELECT string_agg(format('s.%1$I - m.%1$I', c), ', ') FROM unnest(v_sums) c),
        (SELECT string_agg('s.' || c, ', ') FROM unnest(v_sums) c),
        (SELECT string_agg('m.' || c, ', ') FROM unnest(v_sums) c),
        (SELECT string_agg(format('%1$I = a.%1$I + excluded.%1$I', c), ', ') FROM unnest(v_sums) c)
    ) INTO v_moved, v_found;
    IF v_moved <> v_found THEN
        RAISE EXCEPTION '% of % sums of % are missing: the month cannot be archived',
            v_moved - v_found, v_moved, p_table;
    END IF;
END $$;

-- Drop the partition of a month.
--
-- Waits for the ledger's readers in short turns, since calls wait behind it meanwhile. A line that
-- was added after the lines had been summed is still queued for the sums of usage, because
-- archive_month holds lock_usage.
CREATE OR REPLACE FUNCTION drop_month(p_month date, p_lowest uuid, p_below uuid) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    FOR v_turn IN 1 .. 20 LOOP
        BEGIN
            PERFORM set_config('lock_timeout', '200ms', true);
            LOCK TABLE public.ledger IN ACCESS EXCLUSIVE MODE;
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF v_turn = 20 THEN
                RAISE;
            END IF;
            PERFORM pg_sleep(0.3);
        END;
    END LOOP;
    IF EXISTS (
        SELECT 1 FROM usage_pending p
        WHERE p.reservation_id >= p_lowest AND p.reservation_id < p_below
    ) THEN
        RAISE EXCEPTION 'a call of this month was corrected meanwhile'
            USING ERRCODE = 'serialization_failure';
    END IF;
    EXECUTE format('DROP TABLE public.%I', to_char(p_month, '"ledger_"YYYYMM'));
END $$;

-- Archive a month; returns why not (archive_obstacle), or NULL.
--
-- Locks: lock_usage, and the ledger for as long as it takes to drop a partition.
CREATE OR REPLACE FUNCTION archive_month(p_month date) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_groups text[] := ARRAY['requested_model', 'served_model', 'provider', 'operation',
        'credential'];
    v_obstacle text;
    m record;
BEGIN
    PERFORM lock_usage();
    v_obstacle := archive_obstacle(p_month);
    IF v_obstacle IS NOT NULL THEN
        RETURN v_obstacle;
    END IF;
    SELECT * INTO m FROM ledger_months() x WHERE x.month = p_month;
    PERFORM check_month(m.lowest, m.below);
    PERFORM sum_month(m.lowest, m.below);
    PERFORM archive_sums('usage_slot', ARRAY['tenant_id', 'livemode', 'slot'] || v_groups, false);
    PERFORM archive_sums('usage_day', ARRAY['tenant_id', 'livemode', 'day'] || v_groups, true);
    PERFORM archive_sums('usage_owner_day',
        ARRAY['tenant_id', 'livemode', 'day', 'api_key_id', 'user_id'] || v_groups, true);
    INSERT INTO archived_usage (
        tenant_id, month, livemode, lines, held_nano, calls, requests, images, text_input_tokens,
        image_input_tokens, text_output_tokens, image_output_tokens, amount_nano
    )
    SELECT l.tenant_id, p_month, l.livemode, count(*),
        sum(l.amount_nano) FILTER (WHERE l.kind = 'hold'), count(*) FILTER (WHERE l.seq = 1),
        sum(l.requests), sum(l.images), sum(l.text_input_tokens), sum(l.image_input_tokens),
        sum(l.text_output_tokens), sum(l.image_output_tokens),
        sum(l.amount_nano) FILTER (WHERE l.kind <> 'hold')
    FROM ledger l WHERE l.reservation_id >= m.lowest AND l.reservation_id < m.below
    GROUP BY l.tenant_id, l.livemode;
    INSERT INTO archived_month (month, below_id, lines, last_admitted_at)
    SELECT p_month, m.below,
        (SELECT coalesce(sum(a.lines), 0) FROM archived_usage a WHERE a.month = p_month),
        (SELECT max(a.last_admitted_at) FROM pg_temp.archiving a);
    PERFORM drop_month(p_month, m.lowest, m.below);
    RETURN NULL;
END $$;

-- Drop the months of the audit trail that ended this many months ago; returns their number.
CREATE OR REPLACE FUNCTION drop_audit_months(p_months int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_name text;
    v_dropped int := 0;
BEGIN
    PERFORM set_config('lock_timeout', '1s', true);
    FOR v_name IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'public.audit'::regclass
            AND to_date(right(c.relname, 6), 'YYYYMM') + make_interval(months => p_months + 1)
                <= now() AT TIME ZONE 'UTC'
    LOOP
        EXECUTE format('DROP TABLE public.%I', v_name);
        v_dropped := v_dropped + 1;
    END LOOP;
    RETURN v_dropped;
END $$;

REVOKE ALL ON FUNCTION sum_month(uuid, uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION check_month(uuid, uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION archive_sums(text, text[], boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION drop_month(date, uuid, uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION ledger_months() FROM PUBLIC;
REVOKE ALL ON FUNCTION archive_obstacle(date) FROM PUBLIC;
REVOKE ALL ON FUNCTION archive_month(date) FROM PUBLIC;
REVOKE ALL ON FUNCTION drop_audit_months(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_months() TO image_gateway_app;
GRANT EXECUTE ON FUNCTION archive_obstacle(date) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION archive_month(date) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION drop_audit_months(int) TO image_gateway_app;
