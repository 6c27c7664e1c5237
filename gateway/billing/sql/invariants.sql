-- Invariants of budgets, reservations and the ledger: one row for each breach.
--
-- `what` names the invariant (docs/money.md), `id` the budget period or the reservation. Runs with
-- the rights of the role that reads it.
CREATE OR REPLACE VIEW invariant_break WITH (security_invoker = true) AS
SELECT 'I1 budget is not the sum of its reservations' AS what, bp.id::text AS id
FROM budget_period bp
LEFT JOIN (
    SELECT u.period, coalesce(sum(r.final_nano), 0) AS spent,
        coalesce(sum(r.held_nano) FILTER (WHERE r.final_nano IS NULL), 0) AS held
    FROM reservation r CROSS JOIN LATERAL unnest(r.periods) AS u(period) GROUP BY u.period
) q ON q.period = bp.id
WHERE bp.spent_nano <> coalesce(q.spent, 0) OR bp.held_nano <> coalesce(q.held, 0)
UNION ALL
-- The limit that was in force, plus what bound breaches and soft budgets allowed beyond it.
SELECT 'I1 budget overspent', min(bp.id)::text FROM budget_period bp
GROUP BY bp.budget_id, bp.period_start
HAVING sum(bp.spent_nano + bp.held_nano)
    > max(bp.ceiling_nano) + sum(bp.breach_nano) + sum(bp.soft_nano)
UNION ALL
SELECT 'I2 not exactly one hold line, or none that ends it', r.id::text
FROM reservation r LEFT JOIN (
    SELECT reservation_id, count(*) FILTER (WHERE kind = 'hold') AS holds,
        count(*) FILTER (WHERE kind IN ('post', 'post_est', 'void')) AS ends
    FROM ledger GROUP BY 1
) l ON l.reservation_id = r.id
WHERE coalesce(l.holds, 0) <> 1 OR coalesce(l.ends, 0) <> (r.final_nano IS NOT NULL)::int
UNION ALL
SELECT 'I3 lines do not add up to the final cost', r.id::text
FROM reservation r JOIN (
    SELECT reservation_id, coalesce(sum(amount_nano) FILTER (WHERE kind <> 'hold'), 0) AS total,
        sum(amount_nano) FILTER (WHERE kind = 'hold') AS held
    FROM ledger GROUP BY 1
) l ON l.reservation_id = r.id
WHERE l.total <> coalesce(r.final_nano, 0) OR l.held <> r.held_nano
UNION ALL
SELECT 'I5 held past its deadline', r.id::text FROM reservation r
WHERE r.state = 'held' AND r.deadline_at + interval '30 seconds' < clock_timestamp()
UNION ALL
SELECT 'I5 unknown for more than a day', r.id::text FROM reservation r
WHERE r.state = 'unknown' AND r.admitted_at + interval '24 hours' < clock_timestamp();

GRANT SELECT ON invariant_break TO image_gateway_app;
