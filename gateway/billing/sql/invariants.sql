-- The lowest id of the ledger lines that are kept.
CREATE OR REPLACE FUNCTION ledger_begin() RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        (SELECT below_id FROM archived_month ORDER BY month DESC LIMIT 1),
        '00000000-0000-0000-0000-000000000000'::uuid)
$$;

-- Usage: the sums and the lines that are queued for them are the ledger, with its archived months.
--
-- One row for each tenant and mode whose lines and sums differ.
CREATE OR REPLACE VIEW usage_break WITH (security_invoker = true) AS
WITH line AS (
    SELECT a.tenant_id, a.livemode, sum(a.calls) AS calls, sum(a.requests) AS requests,
        sum(a.images) AS images, sum(a.amount_nano) AS amount_nano
    FROM (
        SELECT u.tenant_id, u.livemode, u.calls, u.requests, u.images, u.amount_nano
        FROM usage_summed u
        UNION ALL
        SELECT u.tenant_id, u.livemode, u.calls, u.requests, u.images, u.amount_nano
        FROM archived_usage u
    ) a GROUP BY 1, 2
)
SELECT grain, tenant_id, livemode FROM (
    SELECT 'slot' AS grain, tenant_id, livemode, sum(calls) AS calls, sum(requests) AS requests,
        sum(images) AS images, sum(amount_nano) AS amount_nano
    FROM usage_slot GROUP BY 1, 2, 3
    UNION ALL
    SELECT 'day', tenant_id, livemode, sum(calls), sum(requests), sum(images), sum(amount_nano)
    FROM usage_day GROUP BY 1, 2, 3
    UNION ALL
    SELECT 'owner_day', tenant_id, livemode, sum(calls), sum(requests), sum(images),
        sum(amount_nano)
    FROM usage_owner_day GROUP BY 1, 2, 3
) kept
FULL JOIN (
    SELECT g.grain, l.* FROM line l CROSS JOIN (VALUES ('slot'), ('day'), ('owner_day')) g(grain)
) l USING (grain, tenant_id, livemode)
WHERE (kept.calls, kept.requests, kept.images, kept.amount_nano)
    IS DISTINCT FROM (l.calls, l.requests, l.images, l.amount_nano);

GRANT SELECT ON usage_break TO image_gateway_app;

-- Invariants of budgets, reservations and the ledger: one row for each breach.
--
-- `what` names the invariant (docs/money.md), `id` the budget period or the reservation. Runs with
-- the rights of the role that reads it. A condition on `what` skips the other invariants.
CREATE OR REPLACE VIEW ledger_break WITH (security_invoker = true) AS
SELECT 'I1 budget is not the sum of its reservations' AS what, bp.id::text AS id
FROM budget_period bp
LEFT JOIN (
    SELECT r.tenant_id, u.period, coalesce(sum(r.final_nano), 0) AS spent,
        coalesce(sum(r.held_nano) FILTER (WHERE r.final_nano IS NULL), 0) AS held
    FROM reservation r CROSS JOIN LATERAL unnest(r.periods) AS u(period) GROUP BY 1, 2
) q ON q.tenant_id = bp.tenant_id AND q.period = bp.id
WHERE bp.spent_nano <> coalesce(q.spent, 0) OR bp.held_nano <> coalesce(q.held, 0)
UNION ALL
SELECT 'I1 house budget is not the sum of its reservations', bp.id::text
FROM house_budget_period bp
LEFT JOIN (
    SELECT r.house_shard, u.period, coalesce(sum(r.final_nano), 0) AS spent,
        coalesce(sum(r.held_nano) FILTER (WHERE r.final_nano IS NULL), 0) AS held
    FROM reservation r CROSS JOIN LATERAL unnest(r.house_periods) AS u(period) GROUP BY 1, 2
) q ON q.house_shard = bp.shard AND q.period = bp.id
WHERE bp.spent_nano <> coalesce(q.spent, 0) OR bp.held_nano <> coalesce(q.held, 0)
UNION ALL
-- The limit that was in force, plus what bound breaches and soft budgets allowed beyond it.
SELECT 'I1 budget overspent', bp.id::text FROM budget_period bp
WHERE bp.spent_nano + bp.held_nano > bp.ceiling_nano + bp.breach_nano + bp.soft_nano
UNION ALL
SELECT 'I1 house budget overspent', min(bp.id)::text FROM house_budget_period bp
GROUP BY bp.budget_id, bp.period_start
HAVING sum(bp.spent_nano + bp.held_nano)
    > max(bp.ceiling_nano) + sum(bp.breach_nano) + sum(bp.soft_nano)
UNION ALL
SELECT 'I2 not exactly one hold line, or none that ends it', r.id::text
FROM reservation r LEFT JOIN (
    SELECT tenant_id, reservation_id, count(*) FILTER (WHERE kind = 'hold') AS holds,
        count(*) FILTER (WHERE kind IN ('post', 'post_est', 'void')) AS ends
    FROM ledger GROUP BY 1, 2
) l ON l.tenant_id = r.tenant_id AND l.reservation_id = r.id
WHERE r.id >= (SELECT ledger_begin())
    AND (coalesce(l.holds, 0) <> 1 OR coalesce(l.ends, 0) <> (r.final_nano IS NOT NULL)::int)
UNION ALL
SELECT 'I3 lines do not add up to the final cost', r.id::text
FROM reservation r JOIN (
    SELECT tenant_id, reservation_id,
        coalesce(sum(amount_nano) FILTER (WHERE kind <> 'hold'), 0) AS total,
        sum(amount_nano) FILTER (WHERE kind = 'hold') AS held
    FROM ledger GROUP BY 1, 2
) l ON l.tenant_id = r.tenant_id AND l.reservation_id = r.id
WHERE l.total <> coalesce(r.final_nano, 0) OR l.held <> r.held_nano
UNION ALL
SELECT 'I3 archived lines do not add up to the final costs', coalesce(a.tenant_id, r.tenant_id)::text
FROM (
    SELECT tenant_id, livemode, sum(calls) AS calls, sum(amount_nano) AS total,
        sum(held_nano) AS held
    FROM archived_usage GROUP BY 1, 2
) a
FULL JOIN (
    SELECT tenant_id, livemode, count(*) AS calls, sum(final_nano) AS total, sum(held_nano) AS held
    FROM reservation
    WHERE id < (SELECT ledger_begin()) AND EXISTS (SELECT 1 FROM archived_month)
    GROUP BY 1, 2
) r ON r.tenant_id = a.tenant_id AND r.livemode = a.livemode
WHERE (coalesce(a.calls, 0), coalesce(a.total, 0), coalesce(a.held, 0))
    <> (coalesce(r.calls, 0), coalesce(r.total, 0), coalesce(r.held, 0))
UNION ALL
SELECT 'I5 held past its deadline', r.id::text FROM reservation r
WHERE r.state = 'held' AND r.deadline_at + interval '30 seconds' < clock_timestamp()
UNION ALL
SELECT 'I5 unknown for more than a day', r.id::text FROM reservation r
WHERE r.state = 'unknown' AND r.admitted_at + interval '24 hours' < clock_timestamp();

-- The same with the sums that reports read, and the counters of stored bytes.
CREATE OR REPLACE VIEW invariant_break WITH (security_invoker = true) AS
SELECT b.what, b.id FROM ledger_break b
UNION ALL
SELECT 'I6 usage by ' || replace(u.grain, '_', ' ') || ' is not the ledger', u.tenant_id::text
FROM usage_break u
UNION ALL
SELECT 'stored bytes are not those of the images', s.tenant_id::text FROM storage_break s;

GRANT SELECT ON ledger_break, invariant_break TO image_gateway_app;

-- The periods of all budgets, and the reservations that count in each. A period of the operator's
-- has its negated id as key.
CREATE OR REPLACE VIEW counted_period WITH (security_invoker = true) AS
SELECT p.id AS key, p.tenant_id, p.period_start, p.period_end, p.spent_nano, p.held_nano
FROM budget_period p
UNION ALL
SELECT -p.id, NULL, p.period_start, p.period_end, p.spent_nano, p.held_nano
FROM house_budget_period p;

CREATE OR REPLACE VIEW counted_call WITH (security_invoker = true) AS
SELECT u.period AS key, r.tenant_id, r.admitted_at, r.final_nano, r.held_nano
FROM reservation r CROSS JOIN LATERAL unnest(r.periods) AS u(period)
UNION ALL
SELECT -u.period, r.tenant_id, r.admitted_at, r.final_nano, r.held_nano
FROM reservation r CROSS JOIN LATERAL unnest(r.house_periods) AS u(period);

-- The breaches among what is new since the last check that found none.
--
-- Reads the reservations admitted since then, their lines and their budget periods, so the time
-- depends on them and not on the ledger. What a period had spent on earlier reservations is in
-- checked_period. A correction of an earlier one makes a period differ, which is then summed anew
-- over its own time, and reported only if it still differs. Locks: the row of `sweep`.
--
-- p_remember: with no breach found, the next check begins where this one ends.
CREATE OR REPLACE FUNCTION new_breaks(p_remember boolean) RETURNS TABLE (what text, id text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_from timestamptz;
    v_differ bigint[];
    v_count bigint;
BEGIN
    IF p_remember THEN
        PERFORM 1 FROM sweep s WHERE s.name = 'invariants' FOR UPDATE;
    END IF;
    SELECT s.compared_to INTO v_from FROM sweep s WHERE s.name = 'invariants';
    v_differ := ARRAY(
        SELECT cp.key FROM (
            SELECT c.key, sum(c.final_nano) AS spent,
                sum(c.held_nano) FILTER (WHERE c.final_nano IS NULL) AS held
            FROM counted_call c WHERE c.admitted_at >= v_from GROUP BY 1
        ) n
        JOIN counted_period cp ON cp.key = n.key
        LEFT JOIN checked_period k ON k.period_key = cp.key
        WHERE cp.spent_nano <> coalesce(n.spent, 0) + coalesce(k.spent_nano, 0)
            OR cp.held_nano <> coalesce(n.held, 0)
    );
    RETURN QUERY
    SELECT CASE WHEN cp.key < 0 THEN 'I1 house budget is not the sum of its reservations'
        ELSE 'I1 budget is not the sum of its reservations' END, abs(cp.key)::text
    FROM counted_period cp CROSS JOIN LATERAL (
        SELECT coalesce(sum(c.final_nano), 0) AS spent,
            coalesce(sum(c.held_nano) FILTER (WHERE c.final_nano IS NULL), 0) AS held
        FROM counted_call c
        WHERE c.key = cp.key AND c.admitted_at >= cp.period_start
            AND (cp.tenant_id IS NULL OR c.tenant_id = cp.tenant_id)
    ) q
    WHERE cp.key = ANY (v_differ) AND (cp.spent_nano, cp.held_nano) <> (q.spent, q.held)
    UNION ALL
    SELECT 'I1 budget overspent', bp.id::text FROM budget_period bp
    WHERE bp.id IN (SELECT c.key FROM counted_call c WHERE c.admitted_at >= v_from)
        AND bp.spent_nano + bp.held_nano > bp.ceiling_nano + bp.breach_nano + bp.soft_nano
    UNION ALL
    SELECT b.what, r.id::text FROM reservation r
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE l.kind = 'hold') AS holds,
            count(*) FILTER (WHERE l.kind IN ('post', 'post_est', 'void')) AS ends,
            coalesce(sum(l.amount_nano) FILTER (WHERE l.kind <> 'hold'), 0) AS total,
            coalesce(sum(l.amount_nano) FILTER (WHERE l.kind = 'hold'), 0) AS held
        FROM ledger l WHERE l.tenant_id = r.tenant_id AND l.reservation_id = r.id
    ) l
    CROSS JOIN LATERAL (VALUES
        ('I2 not exactly one hold line, or none that ends it',
            l.holds <> 1 OR l.ends <> (r.final_nano IS NOT NULL)::int),
        ('I3 lines do not add up to the final cost',
            l.total <> coalesce(r.final_nano, 0) OR l.held <> r.held_nano)
    ) b(what, is_broken)
    WHERE r.admitted_at >= v_from AND b.is_broken
    UNION ALL
    SELECT b.what, b.id FROM ledger_break b
    WHERE b.what IN ('I1 house budget overspent', 'I5 held past its deadline',
        'I5 unknown for more than a day')
    UNION ALL
    SELECT 'I6 usage by slot is not the ledger', u.tenant_id::text FROM (
        SELECT s.tenant_id, s.livemode, s.amount_nano, s.images FROM usage_slot s
        WHERE s.slot >= v_from
        UNION ALL
        SELECT l.tenant_id, l.livemode, -l.amount_nano, -l.images
        FROM reservation r JOIN ledger l ON l.tenant_id = r.tenant_id AND l.reservation_id = r.id
        WHERE r.admitted_at >= v_from AND l.kind <> 'hold' AND NOT EXISTS (
            SELECT 1 FROM usage_pending p WHERE p.tenant_id = l.tenant_id
                AND p.reservation_id = l.reservation_id AND p.seq = l.seq)
    ) u
    GROUP BY u.tenant_id, u.livemode HAVING sum(u.amount_nano) <> 0 OR sum(u.images) <> 0;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    IF p_remember AND v_count = 0 THEN
        PERFORM remember_checked(v_from, v_differ);
    END IF;
END $$;

-- Begin the next check at the oldest open reservation, or a minute ago: what is older has settled.
-- p_from: the beginning of this check, NULL after a check of everything. p_anew: periods whose
-- earlier reservations were corrected.
CREATE OR REPLACE FUNCTION remember_checked(p_from timestamptz, p_anew bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    -- The start of a slot of usage, so that slots are checked as a whole.
    v_to timestamptz := greatest(p_from, usage_slot_of(least(
        clock_timestamp() - interval '1 minute',
        (SELECT min(r.admitted_at) FROM reservation r WHERE r.state IN ('held', 'unknown')))));
BEGIN
    IF p_from IS NULL THEN
        DELETE FROM checked_period;
    END IF;
    DELETE FROM checked_period k USING counted_period cp
    WHERE cp.key = k.period_key AND (cp.period_end < p_from OR cp.key = ANY (p_anew));
    INSERT INTO checked_period (period_key, spent_nano)
    SELECT c.key, sum(c.final_nano) FROM counted_call c
    WHERE (p_from IS NULL OR c.admitted_at >= p_from) AND c.admitted_at < v_to
        AND c.key <> ALL (p_anew)
    GROUP BY 1
    ON CONFLICT (period_key) DO UPDATE
        SET spent_nano = checked_period.spent_nano + excluded.spent_nano;
    INSERT INTO checked_period (period_key, spent_nano)
    SELECT cp.key, sum(c.final_nano)
    FROM counted_period cp JOIN counted_call c ON c.key = cp.key
        AND c.admitted_at >= cp.period_start AND c.admitted_at < v_to
        AND (cp.tenant_id IS NULL OR c.tenant_id = cp.tenant_id)
    WHERE cp.key = ANY (p_anew) GROUP BY 1;
    UPDATE sweep SET compared_to = v_to,
        whole_at = CASE WHEN p_from IS NULL THEN clock_timestamp() ELSE whole_at END
    WHERE name = 'invariants';
END $$;

REVOKE ALL ON FUNCTION new_breaks(boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION remember_checked(timestamptz, bigint[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION new_breaks(boolean) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION remember_checked(timestamptz, bigint[]) TO image_gateway_app;

