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

-- The data of an event of a budget.
CREATE OR REPLACE FUNCTION budget_event_data(
    p_budget bigint, p_owner text, p_api_key_id uuid, p_user_id uuid, p_window text,
    p_enforcement text, p_limit bigint, p_spent bigint, p_held bigint, p_start timestamptz,
    p_end timestamptz, p_percent int
) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_build_object(
        'budget_id', p_budget::text, 'owner', p_owner,
        'api_key_id', p_api_key_id, 'user_id', p_user_id,
        'window', p_window, 'enforcement', p_enforcement,
        'limit_usd', usd(p_limit), 'spent_usd', usd(p_spent), 'held_usd', usd(p_held),
        'period_start', instant(p_start), 'resets_at', instant(p_end)
    ) || CASE WHEN p_percent IS NULL THEN '{}'::jsonb
        ELSE jsonb_build_object('threshold_percent', p_percent) END
$$;

-- Write one event of a tenant's budget, to be delivered to webhooks after the commit.
CREATE OR REPLACE FUNCTION note_budget_event(
    p_type text, p_budget budget, p_start timestamptz, p_end timestamptz, p_spent bigint,
    p_held bigint, p_limit bigint, p_percent int
) RETURNS void LANGUAGE sql AS $$
    INSERT INTO event (tenant_id, livemode, type, data)
    VALUES (p_budget.tenant_id, p_budget.livemode, p_type, budget_event_data(
        p_budget.id, CASE WHEN p_budget.api_key_id IS NOT NULL THEN 'key'
            WHEN p_budget.user_id IS NOT NULL THEN 'user' ELSE 'tenant' END,
        p_budget.api_key_id, p_budget.user_id, p_budget.period, p_budget.enforcement, p_limit,
        p_spent, p_held, p_start, p_end, p_percent))
$$;

-- The same of the operator's.
CREATE OR REPLACE FUNCTION note_house_event(
    p_type text, p_budget house_budget, p_start timestamptz, p_end timestamptz, p_spent bigint,
    p_held bigint, p_limit bigint, p_percent int
) RETURNS void LANGUAGE sql AS $$
    INSERT INTO event (tenant_id, livemode, type, data)
    VALUES (NULL, true, p_type, budget_event_data(
        p_budget.id, 'house', NULL, NULL, p_budget.period, p_budget.enforcement, p_limit, p_spent,
        p_held, p_start, p_end, p_percent))
$$;

-- The thresholds newly reached by the spending of a period, in percent, ascending; p_told is the
-- highest that was announced, for the limit p_told_of.
CREATE OR REPLACE FUNCTION thresholds_reached(
    p_percents smallint[], p_limit bigint, p_spent bigint, p_told int, p_told_of bigint
) RETURNS smallint[] LANGUAGE sql IMMUTABLE AS $$
    SELECT ARRAY(
        SELECT u.percent FROM unnest(p_percents) AS u(percent)
        WHERE p_limit > 0
            AND u.percent > CASE WHEN p_limit > p_told_of THEN 0 ELSE p_told END
            -- The largest limit times 100 does not fit into a bigint, so quotient and rest
            -- separately.
            AND p_spent >= p_limit / 100 * u.percent + (p_limit % 100 * u.percent + 99) / 100
        ORDER BY 1)
$$;

-- Write an event for each threshold newly reached by the spending of a tenant's budget.
CREATE OR REPLACE FUNCTION alert_budget() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    b budget;
    v_limit bigint;
    v_percent smallint;
BEGIN
    SELECT * INTO b FROM budget WHERE tenant_id = NEW.tenant_id AND id = NEW.budget_id;
    v_limit := limit_at(b.limit_nano, b.raised_to_nano, b.raised_until, clock_timestamp());
    IF b.removed_at IS NOT NULL THEN
        RETURN NEW;
    END IF;
    -- A higher limit starts again.
    IF v_limit > NEW.alerted_of_nano THEN
        NEW.alerted_percent := 0;
    END IF;
    FOREACH v_percent IN ARRAY thresholds_reached(
        b.alert_percents, v_limit, NEW.spent_nano, NEW.alerted_percent, NEW.alerted_of_nano)
    LOOP
        NEW.alerted_percent := v_percent;
        NEW.alerted_of_nano := v_limit;
        PERFORM note_budget_event('budget.threshold_reached', b, NEW.period_start, NEW.period_end,
            NEW.spent_nano, NEW.held_nano, v_limit, v_percent);
    END LOOP;
    RETURN NEW;
END $$;

CREATE OR REPLACE TRIGGER budget_period_alert BEFORE UPDATE ON budget_period
    FOR EACH ROW WHEN (NEW.spent_nano > OLD.spent_nano) EXECUTE FUNCTION alert_budget();

-- The amounts of one period of an operator's budget, over all its shards.
CREATE OR REPLACE FUNCTION house_sums(
    p_budget bigint, p_start timestamptz, OUT spent_nano bigint, OUT held_nano bigint
) LANGUAGE sql STABLE AS $$
    SELECT sum(x.spent_nano), sum(x.held_nano) FROM house_budget_period x
    WHERE x.shard = ANY (ARRAY(SELECT generate_series(0, shard_count() - 1)))
        AND x.budget_id = p_budget AND x.period_start = p_start
$$;

-- The same for the operator's budgets: run at intervals, not with each call.
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
    v_limit bigint;
    v_percent smallint;
    b house_budget;
    p house_budget_period;
BEGIN
    -- A period that ended less than a day ago counts too: its last calls are settled later.
    FOR p IN
        SELECT * FROM house_budget_period x
        WHERE x.shard = 0 AND x.period_start <= v_now AND v_now < x.period_end + interval '1 day'
        ORDER BY x.id FOR UPDATE
    LOOP
        SELECT * INTO b FROM house_budget WHERE id = p.budget_id;
        CONTINUE WHEN b.removed_at IS NOT NULL;
        v_limit := limit_at(
            b.limit_nano, b.raised_to_nano, b.raised_until, least(v_now, p.period_end));
        SELECT s.spent_nano, s.held_nano INTO v_spent, v_held
        FROM house_sums(p.budget_id, p.period_start) s;
        IF v_limit > p.alerted_of_nano AND p.alerted_percent > 0 THEN
            UPDATE house_budget_period SET alerted_percent = 0 WHERE shard = 0 AND id = p.id;
        END IF;
        FOREACH v_percent IN ARRAY thresholds_reached(
            b.alert_percents, v_limit, v_spent, p.alerted_percent, p.alerted_of_nano)
        LOOP
            PERFORM note_house_event('budget.threshold_reached', b, p.period_start, p.period_end,
                v_spent, v_held, v_limit, v_percent);
            UPDATE house_budget_period SET alerted_percent = v_percent, alerted_of_nano = v_limit
            WHERE shard = 0 AND id = p.id;
        END LOOP;
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION alert_house_budgets() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION alert_house_budgets() TO image_gateway_app;
