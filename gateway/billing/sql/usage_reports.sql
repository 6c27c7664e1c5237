-- What a usage report sums: the days, quarters of an hour and lines that make up its period.
--
-- The functions run with the rights of their caller's role and take no locks. Postgres expands them
-- into the report's statement, so a constant parameter decides which tables are read at all.
--
-- p_tenant_id: NULL, all tenants. p_zone: the time zone of the report; NULL, each tenant's own.
-- p_source names the coarsest sums that the report may use: 'day'; 'owner_day', with key and user;
-- 'slot', for hours; 'line', for the quality and size of images. 'whole_day' and 'whole_owner_day'
-- leave out the parts of days at either end of the period, for reports that count none of them.

-- The tenants of a report, and whether its days are the days that are kept for them.
--
-- Other tenants, and those whose days must be made anew, are read by slots or lines alone.
CREATE OR REPLACE FUNCTION usage_owners(p_tenant_id uuid, p_zone text)
RETURNS TABLE (tenant_id uuid, zone text, by_day boolean) LANGUAGE sql STABLE AS $$
    SELECT t.id, coalesce(p_zone, t.time_zone),
        s.tenant_id IS NULL AND (p_zone IS NULL OR p_zone = t.time_zone)
    FROM tenant t LEFT JOIN usage_stale s ON s.tenant_id = t.id
    WHERE p_tenant_id IS NULL OR t.id = p_tenant_id
$$;

-- The same as one answer: is any of them not read by days?
CREATE OR REPLACE FUNCTION usage_has_other_days(p_tenant_id uuid, p_zone text) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT 1 FROM usage_stale s WHERE p_tenant_id IS NULL OR s.tenant_id = p_tenant_id
    ) OR (p_zone IS NOT NULL AND EXISTS (
        SELECT 1 FROM tenant t
        WHERE (p_tenant_id IS NULL OR t.id = p_tenant_id) AND t.time_zone <> p_zone
    ))
$$;

-- The whole days of a period in a time zone, from first_day until before end_day.
--
-- is_cut: the period begins or ends within a day. That is not always seen in local times, since
-- one that clocks are put back to occurs twice, and a day may begin at one in the morning.
CREATE OR REPLACE FUNCTION usage_days(p_zone text, p_start timestamptz, p_end timestamptz)
RETURNS TABLE (first_day date, end_day date, is_cut boolean) LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN starts = before_start THEN starts + 1 ELSE starts END,
        ends, starts = before_start OR ends = before_end
    FROM (
        SELECT (p_start AT TIME ZONE p_zone)::date AS starts,
            ((p_start - interval '1 microsecond') AT TIME ZONE p_zone)::date AS before_start,
            (p_end AT TIME ZONE p_zone)::date AS ends,
            ((p_end - interval '1 microsecond') AT TIME ZONE p_zone)::date AS before_end
    ) d
$$;

-- The whole days of a period in the zones of these tenants' days.
CREATE OR REPLACE FUNCTION usage_spans(
    p_tenant_id uuid, p_zone text, p_start timestamptz, p_end timestamptz
) RETURNS TABLE (zone text, first_day date, end_day date, is_cut boolean) LANGUAGE sql STABLE AS $$
    SELECT z.time_zone, d.* FROM (
        SELECT DISTINCT t.time_zone FROM tenant t
        WHERE (p_tenant_id IS NULL OR t.id = p_tenant_id)
            AND (p_zone IS NULL OR t.time_zone = p_zone)
    ) z CROSS JOIN LATERAL usage_days(z.time_zone, p_start, p_end) d
$$;

-- Where lines are read at the begin of a period, and from where at its end: the parts of a quarter,
-- or, with key and user, the hours that a day has at most. Without these parts nothing is read.
CREATE OR REPLACE FUNCTION usage_head_end(p_start timestamptz, p_source text) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT CASE p_source WHEN 'owner_day' THEN p_start + interval '2 days'
        ELSE usage_slot_of(p_start + interval '15 minutes' - interval '1 microsecond') END
$$;

CREATE OR REPLACE FUNCTION usage_tail_start(p_end timestamptz, p_source text) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT CASE p_source WHEN 'owner_day' THEN p_end - interval '2 days'
        ELSE usage_slot_of(p_end) END
$$;

-- The time up to which lines are archived, if a report needs any of them; else NULL.
--
-- It does by quality, size or status, by key and user in other days than those that are kept, and
-- within a quarter of an hour at either end.
CREATE OR REPLACE FUNCTION usage_archived_to(
    p_tenant_id uuid, p_zone text, p_start timestamptz, p_end timestamptz, p_source text
) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT a.last_at FROM (SELECT max(last_admitted_at) AS last_at FROM archived_month) a
    WHERE p_start <= a.last_at AND CASE p_source
        WHEN 'line' THEN true
        WHEN 'whole_owner_day' THEN usage_has_other_days(p_tenant_id, p_zone)
        WHEN 'owner_day' THEN usage_has_other_days(p_tenant_id, p_zone) OR EXISTS (
            SELECT 1 FROM (
                SELECT DISTINCT t.time_zone AS zone FROM tenant t
                WHERE p_tenant_id IS NULL OR t.id = p_tenant_id
            ) z
            WHERE (p_start AT TIME ZONE z.zone)::date
                    = ((p_start - interval '1 microsecond') AT TIME ZONE z.zone)::date
                OR (usage_tail_start(p_end, p_source) <= a.last_at
                    AND (p_end AT TIME ZONE z.zone)::date
                        = ((p_end - interval '1 microsecond') AT TIME ZONE z.zone)::date))
        ELSE usage_head_end(p_start, p_source) > p_start
            OR (usage_tail_start(p_end, p_source) < p_end
                AND usage_tail_start(p_end, p_source) <= a.last_at)
    END
$$;

-- The lines that a report must read one by one beside its sums: parts of a quarter, or, with key and
-- user, of a day that is cut. zone: that of the report's days.
--
-- They are found by time, before anything is known of their reservations (hence the OFFSET): joined
-- with those at once, Postgres would read the reservations of other months.
CREATE OR REPLACE FUNCTION usage_lines_of_cut_days(
    p_tenant_id uuid, p_livemode boolean, p_zone text, p_start timestamptz, p_end timestamptz,
    p_source text
) RETURNS TABLE (tenant_id uuid, reservation_id uuid, seq smallint, zone text) LANGUAGE sql STABLE AS $$
    WITH span AS MATERIALIZED (SELECT * FROM usage_spans(p_tenant_id, p_zone, p_start, p_end))
    SELECT l.tenant_id, l.reservation_id, l.seq, o.zone
    FROM ledger l JOIN usage_owners(p_tenant_id, p_zone) o ON o.tenant_id = l.tenant_id
    LEFT JOIN span s ON s.zone = o.zone
    WHERE p_source <> 'line' AND (p_source <> 'owner_day' OR (SELECT bool_or(is_cut) FROM span))
        AND (usage_head_end(p_start, p_source) > p_start
            OR usage_tail_start(p_end, p_source) < p_end)
        AND ((l.admitted_at >= p_start
                AND l.admitted_at < least(usage_head_end(p_start, p_source), p_end))
            OR (l.admitted_at >= greatest(usage_tail_start(p_end, p_source), p_start)
                AND l.admitted_at < p_end))
        AND (p_tenant_id IS NULL OR l.tenant_id = p_tenant_id) AND l.livemode = p_livemode
        AND l.kind <> 'hold'
        AND (p_source <> 'owner_day' OR (
            o.by_day AND ((l.admitted_at AT TIME ZONE o.zone)::date < s.first_day
            OR (l.admitted_at AT TIME ZONE o.zone)::date >= greatest(s.first_day, s.end_day))))
    OFFSET 0
$$;

-- The sums that make up a report, not grouped yet; at_local is where each begins, in local time.
--
-- Tenants with the same days are read together: a period is divided for each time zone, not for
-- each tenant. Beside whole days, quarters (lines, with key and user) make up the days that are cut
-- at either end: less than two days' hours. Queued lines are counted as such, wherever they lie.
-- The exact bounds of days are in a CASE: the planner would take them for further restrictions
-- beside the constant ones, and expect a thirtieth of the rows.
CREATE OR REPLACE FUNCTION usage_between(
    p_tenant_id uuid, p_livemode boolean, p_zone text, p_start timestamptz, p_end timestamptz,
    p_source text
) RETURNS TABLE (
    tenant_id uuid, at_local timestamp, api_key_id uuid, user_id uuid, requested_model text,
    served_model text, provider text, operation text, credential text, quality text, size text,
    status text, calls bigint, requests bigint, images bigint, text_input_tokens bigint,
    image_input_tokens bigint, text_output_tokens bigint, image_output_tokens bigint,
    amount_nano bigint
) LANGUAGE sql STABLE AS $$
    WITH span AS MATERIALIZED (SELECT * FROM usage_spans(p_tenant_id, p_zone, p_start, p_end))
    SELECT
        d.tenant_id, d.day::timestamp, NULL::uuid, NULL::uuid, d.requested_model, d.served_model,
        d.provider, d.operation, d.credential, NULL::text, NULL::text, NULL::text, d.calls,
        d.requests, d.images, d.text_input_tokens, d.image_input_tokens, d.text_output_tokens,
        d.image_output_tokens, d.amount_nano
    FROM usage_day d JOIN span s ON s.zone = d.zone
    WHERE p_source IN ('day', 'whole_day') AND (p_tenant_id IS NULL OR d.tenant_id = p_tenant_id)
        AND d.livemode = p_livemode
        AND CASE WHEN d.day >= s.first_day THEN d.day < s.end_day END
        AND d.day BETWEEN (p_start - interval '1 day')::date AND (p_end + interval '1 day')::date
        AND d.tenant_id <> ALL (ARRAY(SELECT tenant_id FROM usage_stale))
    UNION ALL
    SELECT
        d.tenant_id, d.day::timestamp, d.api_key_id, d.user_id, d.requested_model, d.served_model,
        d.provider, d.operation, d.credential, NULL::text, NULL::text, NULL::text, d.calls,
        d.requests, d.images, d.text_input_tokens, d.image_input_tokens, d.text_output_tokens,
        d.image_output_tokens, d.amount_nano
    FROM usage_owner_day d JOIN span s ON s.zone = d.zone
    WHERE p_source IN ('owner_day', 'whole_owner_day')
        AND (p_tenant_id IS NULL OR d.tenant_id = p_tenant_id)
        AND d.livemode = p_livemode
        AND CASE WHEN d.day >= s.first_day THEN d.day < s.end_day END
        AND d.day BETWEEN (p_start - interval '1 day')::date AND (p_end + interval '1 day')::date
        AND d.tenant_id <> ALL (ARRAY(SELECT tenant_id FROM usage_stale))
    UNION ALL
    SELECT
        q.tenant_id, q.slot AT TIME ZONE o.zone, NULL::uuid, NULL::uuid, q.requested_model,
        q.served_model, q.provider, q.operation, q.credential, NULL::text, NULL::text, NULL::text,
        q.calls, q.requests, q.images, q.text_input_tokens, q.image_input_tokens,
        q.text_output_tokens, q.image_output_tokens, q.amount_nano
    FROM (
        SELECT * FROM usage_slot x
        WHERE (p_tenant_id IS NULL OR x.tenant_id = p_tenant_id) AND x.livemode = p_livemode
            AND ((x.slot >= p_start
                    AND x.slot < least(p_start + interval '2 days', usage_slot_of(p_end)))
                OR (x.slot >= greatest(p_end - interval '2 days', p_start)
                    AND x.slot < usage_slot_of(p_end)))
        -- Read by time: of a few tenants, as many as Postgres expects, it would look up each.
        OFFSET 0
    ) q
    JOIN usage_owners(p_tenant_id, p_zone) o ON o.tenant_id = q.tenant_id
    JOIN span s ON s.zone = o.zone
    WHERE p_source = 'day' AND (SELECT bool_or(is_cut) FROM span)
        AND o.by_day AND ((q.slot AT TIME ZONE o.zone)::date < s.first_day
            OR (q.slot AT TIME ZONE o.zone)::date >= greatest(s.first_day, s.end_day))
    UNION ALL
    SELECT
        q.tenant_id, q.slot AT TIME ZONE o.zone, NULL::uuid, NULL::uuid, q.requested_model,
        q.served_model, q.provider, q.operation, q.credential, NULL::text, NULL::text, NULL::text,
        q.calls, q.requests, q.images, q.text_input_tokens, q.image_input_tokens,
        q.text_output_tokens, q.image_output_tokens, q.amount_nano
    FROM usage_slot q JOIN usage_owners(p_tenant_id, p_zone) o ON o.tenant_id = q.tenant_id
    WHERE (p_source = 'slot' OR (p_source IN ('day', 'whole_day') AND NOT o.by_day
            AND (SELECT usage_has_other_days(p_tenant_id, p_zone))))
        AND (p_tenant_id IS NULL OR q.tenant_id = p_tenant_id) AND q.livemode = p_livemode
        AND q.slot >= p_start AND q.slot < usage_slot_of(p_end)
    UNION ALL
    SELECT
        u.tenant_id, u.admitted_at AT TIME ZONE o.zone, u.api_key_id, u.user_id, u.requested_model,
        u.served_model, u.provider, u.operation, u.credential, u.served_quality, u.served_size,
        u.status, u.calls, u.requests, u.images, u.text_input_tokens, u.image_input_tokens,
        u.text_output_tokens, u.image_output_tokens, u.amount_nano
    FROM usage_lines_of_cut_days(p_tenant_id, p_livemode, p_zone, p_start, p_end, p_source) o
    CROSS JOIN LATERAL (
        SELECT * FROM usage_summed x
        WHERE x.tenant_id = o.tenant_id AND x.reservation_id = o.reservation_id AND x.seq = o.seq
        LIMIT 1
    ) u
    UNION ALL
    SELECT
        u.tenant_id, u.admitted_at AT TIME ZONE o.zone, u.api_key_id, u.user_id, u.requested_model,
        u.served_model, u.provider, u.operation, u.credential, u.served_quality, u.served_size,
        u.status, u.calls, u.requests, u.images, u.text_input_tokens, u.image_input_tokens,
        u.text_output_tokens, u.image_output_tokens, u.amount_nano
    FROM usage_summed u JOIN usage_owners(p_tenant_id, p_zone) o ON o.tenant_id = u.tenant_id
    WHERE (p_source = 'line' OR (p_source IN ('owner_day', 'whole_owner_day') AND NOT o.by_day
            AND (SELECT usage_has_other_days(p_tenant_id, p_zone))))
        AND (p_tenant_id IS NULL OR u.tenant_id = p_tenant_id) AND u.livemode = p_livemode
        AND u.admitted_at >= p_start AND u.admitted_at < p_end
        AND u.reserved_at >= p_start AND u.reserved_at < p_end
    UNION ALL
    SELECT
        u.tenant_id, u.admitted_at AT TIME ZONE o.zone, u.api_key_id, u.user_id, u.requested_model,
        u.served_model, u.provider, u.operation, u.credential, u.served_quality, u.served_size,
        u.status, u.calls, u.requests, u.images, u.text_input_tokens, u.image_input_tokens,
        u.text_output_tokens, u.image_output_tokens, u.amount_nano
    FROM usage_pending p CROSS JOIN LATERAL (
        -- The limit keeps Postgres from reading the whole ledger where it expects a long queue.
        SELECT * FROM usage_addend l
        WHERE l.tenant_id = p.tenant_id AND l.reservation_id = p.reservation_id AND l.seq = p.seq
        LIMIT 1
    ) u
    JOIN usage_owners(p_tenant_id, p_zone) o ON o.tenant_id = p.tenant_id
    WHERE (p_tenant_id IS NULL OR p.tenant_id = p_tenant_id)
        AND u.livemode = p_livemode AND u.admitted_at >= p_start AND u.admitted_at < p_end
$$;
