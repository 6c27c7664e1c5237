-- What a usage report sums: the days, quarters of an hour and lines that make up its period.
--
-- Both functions run with the rights of their caller's role and take no locks.

-- Divide a report's period, for each tenant (all, where p_tenant_id is NULL), into ranges.
--
-- p_zone: the time zone of the report; NULL, each tenant's own. p_source names the coarsest sums
-- that the report may use: 'day'; 'owner_day', with key and user; 'slot', for hours; 'line', for
-- the quality and size of images.
--
-- Output: `grain` is day, slot or line; `low` and `high` limit slots and lines, high excluded;
-- `low_day` and `high_day` limit the local day of each of the three, high_day excluded. A tenant
-- whose days are not the report's, or must be made anew, is read by slots or lines alone.
CREATE OR REPLACE FUNCTION usage_ranges(
    p_tenant_id uuid, p_zone text, p_start timestamptz, p_end timestamptz, p_source text
) RETURNS TABLE (
    tenant_id uuid, zone text, grain text, low timestamptz, high timestamptz, low_day date,
    high_day date
) LANGUAGE sql STABLE AS $$
    WITH local AS MATERIALIZED (
        SELECT t.id, z.zone, p_start AT TIME ZONE z.zone AS starts,
            p_end AT TIME ZONE z.zone AS ends,
            p_source IN ('day', 'owner_day') AND z.zone = t.time_zone AND s.tenant_id IS NULL
                AS by_day,
            usage_slot_of(p_start + interval '15 minutes' - interval '1 microsecond') AS first_slot,
            greatest(usage_slot_of(p_end), p_start) AS end_slot
        FROM tenant t LEFT JOIN usage_stale s ON s.tenant_id = t.id
        CROSS JOIN LATERAL (SELECT coalesce(p_zone, t.time_zone) AS zone) z
        WHERE p_tenant_id IS NULL OR t.id = p_tenant_id
    ), part AS MATERIALIZED (
        -- The whole days, and where the parts of days before and after them end and begin at the
        -- latest and earliest: no day has more than two days' hours.
        SELECT l.*, d.*,
            CASE WHEN NOT l.by_day THEN p_end
                WHEN l.starts = d.first_day::timestamp THEN p_start
                ELSE least(p_start + interval '2 days', p_end) END AS head_end,
            CASE WHEN NOT l.by_day OR l.ends = d.end_day::timestamp THEN p_end
                ELSE greatest(p_end - interval '2 days', p_start) END AS tail_start
        FROM local l CROSS JOIN LATERAL (
            SELECT CASE WHEN l.by_day
                    THEN (l.starts + interval '1 day' - interval '1 microsecond')::date
                    ELSE 'infinity' END AS first_day,
                CASE WHEN l.by_day THEN l.ends::date ELSE 'infinity' END AS end_day
        ) d
    )
    SELECT r.* FROM part p CROSS JOIN LATERAL (VALUES
        (p.id, p.zone, 'day', p_start, p_end, p.first_day, p.end_day),
        (p.id, p.zone, 'slot', p.first_slot, least(p.head_end, p.end_slot), '-infinity',
            p.first_day),
        (p.id, p.zone, 'slot', greatest(p.tail_start, p.first_slot), p.end_slot,
            greatest(p.first_day, p.end_day), 'infinity'),
        (p.id, p.zone, 'line', p_start, CASE p_source WHEN 'line' THEN p_end
            WHEN 'owner_day' THEN p.head_end ELSE least(p.first_slot, p_end) END, '-infinity',
            CASE p_source WHEN 'owner_day' THEN p.first_day ELSE 'infinity' END),
        (p.id, p.zone, 'line', CASE p_source WHEN 'line' THEN p_end
            WHEN 'owner_day' THEN p.tail_start ELSE greatest(p.first_slot, p.end_slot) END, p_end,
            CASE p_source WHEN 'owner_day' THEN greatest(p.first_day, p.end_day)
                ELSE '-infinity' END, 'infinity')
    ) r(tenant_id, zone, grain, low, high, low_day, high_day)
    WHERE r.low < r.high AND r.low_day < r.high_day
        AND (r.grain <> 'slot' OR p_source IN ('day', 'slot'))
$$;

-- The sums that make up a report, not grouped yet; at_local is where each begins, in local time.
-- Queued lines are counted as such, in any range. For the parameters see usage_ranges.
CREATE OR REPLACE FUNCTION usage_between(
    p_tenant_id uuid, p_livemode boolean, p_zone text, p_start timestamptz, p_end timestamptz,
    p_source text
) RETURNS TABLE (
    tenant_id uuid, at_local timestamp, api_key_id uuid, user_id uuid, requested_model text,
    served_model text, provider text, operation text, credential text, quality text, size text,
    calls bigint, requests bigint, images bigint, text_input_tokens bigint,
    image_input_tokens bigint, text_output_tokens bigint, image_output_tokens bigint,
    amount_nano bigint
) LANGUAGE sql STABLE AS $$
    WITH b AS MATERIALIZED (
        SELECT * FROM usage_ranges(p_tenant_id, p_zone, p_start, p_end, p_source)
    )
    SELECT
        b.tenant_id, d.day::timestamp, NULL::uuid, NULL::uuid, d.requested_model, d.served_model,
        d.provider, d.operation, d.credential, NULL::text, NULL::text, d.calls, d.requests,
        d.images, d.text_input_tokens, d.image_input_tokens, d.text_output_tokens,
        d.image_output_tokens, d.amount_nano
    FROM b JOIN usage_day d ON d.tenant_id = b.tenant_id
    WHERE p_source = 'day' AND b.grain = 'day' AND d.livemode = p_livemode
        AND d.day >= b.low_day AND d.day < b.high_day
        AND d.day BETWEEN (p_start - interval '1 day')::date AND (p_end + interval '1 day')::date
    UNION ALL
    SELECT
        b.tenant_id, o.day::timestamp, o.api_key_id, o.user_id, o.requested_model, o.served_model,
        o.provider, o.operation, o.credential, NULL::text, NULL::text, o.calls, o.requests,
        o.images, o.text_input_tokens, o.image_input_tokens, o.text_output_tokens,
        o.image_output_tokens, o.amount_nano
    FROM b JOIN usage_owner_day o ON o.tenant_id = b.tenant_id
    WHERE p_source = 'owner_day' AND b.grain = 'day' AND o.livemode = p_livemode
        AND o.day >= b.low_day AND o.day < b.high_day
        AND o.day BETWEEN (p_start - interval '1 day')::date AND (p_end + interval '1 day')::date
    UNION ALL
    SELECT
        b.tenant_id, s.slot AT TIME ZONE b.zone, NULL::uuid, NULL::uuid, s.requested_model,
        s.served_model, s.provider, s.operation, s.credential, NULL::text, NULL::text, s.calls,
        s.requests, s.images, s.text_input_tokens, s.image_input_tokens, s.text_output_tokens,
        s.image_output_tokens, s.amount_nano
    FROM b JOIN usage_slot s ON s.tenant_id = b.tenant_id
    WHERE b.grain = 'slot' AND s.livemode = p_livemode AND s.slot >= b.low AND s.slot < b.high
        AND (s.slot AT TIME ZONE b.zone)::date >= b.low_day
        AND (s.slot AT TIME ZONE b.zone)::date < b.high_day
    UNION ALL
    SELECT
        b.tenant_id, u.admitted_at AT TIME ZONE b.zone, u.api_key_id, u.user_id, u.requested_model,
        u.served_model, u.provider, u.operation, u.credential, u.served_quality, u.served_size,
        u.calls::bigint, u.requests::bigint, u.images::bigint, u.text_input_tokens::bigint,
        u.image_input_tokens::bigint, u.text_output_tokens::bigint, u.image_output_tokens::bigint,
        u.amount_nano::bigint
    FROM b JOIN usage_line u ON u.tenant_id = b.tenant_id
    WHERE b.grain = 'line' AND u.livemode = p_livemode
        AND u.admitted_at >= b.low AND u.admitted_at < b.high
        AND (u.admitted_at AT TIME ZONE b.zone)::date >= b.low_day
        AND (u.admitted_at AT TIME ZONE b.zone)::date < b.high_day
        AND NOT EXISTS (
            SELECT 1 FROM usage_pending p WHERE p.tenant_id = u.tenant_id
                AND p.reservation_id = u.reservation_id AND p.seq = u.seq
        )
    UNION ALL
    SELECT
        p.tenant_id, u.admitted_at AT TIME ZONE coalesce(p_zone, t.time_zone), u.api_key_id,
        u.user_id, u.requested_model, u.served_model, u.provider, u.operation, u.credential,
        u.served_quality, u.served_size, u.calls::bigint, u.requests::bigint, u.images::bigint,
        u.text_input_tokens::bigint, u.image_input_tokens::bigint, u.text_output_tokens::bigint,
        u.image_output_tokens::bigint, u.amount_nano::bigint
    FROM usage_pending p
    JOIN usage_line u ON u.reservation_id = p.reservation_id AND u.seq = p.seq
    JOIN tenant t ON t.id = p.tenant_id
    WHERE (p_tenant_id IS NULL OR p.tenant_id = p_tenant_id)
        AND u.livemode = p_livemode AND u.admitted_at >= p_start AND u.admitted_at < p_end
$$;
