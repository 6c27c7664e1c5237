-- Usage: the sums and the lines that are queued for them are the ledger.
--
-- One row for each tenant and mode whose lines and sums differ.
CREATE OR REPLACE VIEW usage_break WITH (security_invoker = true) AS
WITH line AS (
    SELECT u.tenant_id, u.livemode, sum(u.calls) AS calls, sum(u.requests) AS requests,
        sum(u.images) AS images, sum(u.amount_nano) AS amount_nano
    FROM usage_summed u GROUP BY 1, 2
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
-- the rights of the role that reads it.
CREATE OR REPLACE VIEW invariant_break WITH (security_invoker = true) AS
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
WHERE coalesce(l.holds, 0) <> 1 OR coalesce(l.ends, 0) <> (r.final_nano IS NOT NULL)::int
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
SELECT 'I5 held past its deadline', r.id::text FROM reservation r
WHERE r.state = 'held' AND r.deadline_at + interval '30 seconds' < clock_timestamp()
UNION ALL
SELECT 'I5 unknown for more than a day', r.id::text FROM reservation r
WHERE r.state = 'unknown' AND r.admitted_at + interval '24 hours' < clock_timestamp()
UNION ALL
SELECT 'I6 usage by ' || replace(u.grain, '_', ' ') || ' is not the ledger', u.tenant_id::text
FROM usage_break u;

GRANT SELECT ON invariant_break TO image_gateway_app;
