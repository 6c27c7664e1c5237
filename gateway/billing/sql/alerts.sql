-- Budget events: thresholds that are reached, written in the commit that spends, and refusals.
--
-- A period records the highest threshold that it announced, and for which limit. A higher limit
-- starts again, so that a raised budget announces 80 % once more.

-- Nano-dollars as dollars with nine decimals.
CREATE OR REPLACE FUNCTION usd(p_nano bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT (p_nano / 1000000000)::text || '.' || lpad((p_nano % 1000000000)::text, 9, '0')
$$;

-- A timestamp as RFC 3339 in UTC; NULL if it is infinite.
CREATE OR REPLACE FUNCTION instant(p_at timestamptz) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN isfinite(p_at)
        THEN to_char(p_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') END
$$;

-- Write one event of a budget, to be delivered to webhooks after the commit.
CREATE OR REPLACE FUNCTION note_budget_event(
    p_type text, p_budget budget, p_period budget_period, p_spent bigint, p_held bigint,
    p_limit bigint, p_percent int
) RETURNS void LANGUAGE sql AS $$
    INSERT INTO event (tenant_id, livemode, type, data)
    VALUES (p_budget.tenant_id, p_budget.livemode, p_type, jsonb_build_object(
        'budget_id', p_budget.id::text,
        'owner', CASE WHEN p_budget.tenant_id IS NULL THEN 'house'
            WHEN p_budget.api_key_id IS NOT NULL THEN 'key'
            WHEN p_budget.user_id IS NOT NULL THEN 'user' ELSE 'tenant' END,
        'api_key_id', p_budget.api_key_id, 'user_id', p_budget.user_id,
        'window', p_budget.period, 'enforcement', p_budget.enforcement,
        'limit_usd', usd(p_limit), 'spent_usd', usd(p_spent), 'held_usd', usd(p_held),
        'period_start', instant(p_period.period_start),
        'resets_at', instant(p_period.period_end)
    ) || CASE WHEN p_percent IS NULL THEN '{}'::jsonb
        ELSE jsonb_build_object('threshold_percent', p_percent) END)
$$;

-- Write an event for each threshold newly reached by the spending of a period.
--
-- Returns the period with the thresholds recorded; the caller writes it.
CREATE OR REPLACE FUNCTION alert_reached(
    p_period budget_period, p_spent bigint, p_held bigint, p_at timestamptz
) RETURNS budget_period LANGUAGE plpgsql AS $$
DECLARE
    b budget;
    v_limit bigint;
    v_percent smallint;
BEGIN
    SELECT * INTO b FROM budget WHERE id = p_period.budget_id;
    v_limit := limit_at(b, p_at);
    IF b.removed_at IS NOT NULL OR v_limit = 0 THEN
        RETURN p_period;
    END IF;
    IF v_limit > p_period.alerted_of_nano THEN
        p_period.alerted_percent := 0;
    END IF;
    FOR v_percent IN SELECT u.percent FROM unnest(b.alert_percents) AS u(percent) ORDER BY 1 LOOP
        -- The largest limit times 100 does not fit into a bigint, so quotient and rest separately.
        IF v_percent > p_period.alerted_percent
            AND p_spent >= v_limit / 100 * v_percent + (v_limit % 100 * v_percent + 99) / 100
        THEN
            p_period.alerted_percent := v_percent;
            p_period.alerted_of_nano := v_limit;
            PERFORM note_budget_event('budget.threshold_reached', b, p_period, p_spent, p_held,
                v_limit, v_percent);
        END IF;
    END LOOP;
    RETURN p_period;
END $$;

CREATE OR REPLACE FUNCTION alert_budget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN alert_reached(NEW, NEW.spent_nano, NEW.held_nano, clock_timestamp());
END $$;

CREATE OR REPLACE TRIGGER budget_period_alert BEFORE UPDATE ON budget_period
    FOR EACH ROW WHEN (NEW.spent_nano > OLD.spent_nano AND NEW.tenant_id IS NOT NULL)
    EXECUTE FUNCTION alert_budget();

-- The same for the operator's budgets, over their shards: run at intervals, not with each call.
--
-- Locks the first shard of each period, by id.
CREATE OR REPLACE FUNCTION alert_house_budgets() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET enable_seqscan = off AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_spent bigint;
    v_held bigint;
    p budget_period;
BEGIN
    -- A period that ended less than a day ago counts too: its last calls are settled later.
    FOR p IN
        SELECT * FROM budget_period x
        WHERE x.budget_id IN (SELECT b.id FROM budget b WHERE b.tenant_id IS NULL)
            AND x.period_start <= v_now AND v_now < x.period_end + interval '1 day'
            AND x.shard = 0
        ORDER BY x.id FOR UPDATE
    LOOP
        SELECT sum(x.spent_nano), sum(x.held_nano) INTO v_spent, v_held FROM budget_period x
        WHERE x.budget_id = p.budget_id AND x.period_start = p.period_start;
        p := alert_reached(p, v_spent, v_held, least(v_now, p.period_end));
        UPDATE budget_period SET
            alerted_percent = p.alerted_percent, alerted_of_nano = p.alerted_of_nano
        WHERE id = p.id AND (alerted_percent, alerted_of_nano)
            <> (p.alerted_percent, p.alerted_of_nano);
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION alert_house_budgets() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION alert_house_budgets() TO image_gateway_app;
