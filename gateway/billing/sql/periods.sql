-- Budgets and their periods: the budgets that apply to a request, and their current periods.
--
-- A period is a row of budget_period: the bounds of one day, week, month or total, and the amounts
-- spent and held in it. A tenant's budget has one row per period. The operator's budget over all
-- tenants has eight, its shards, so that gateways do not queue for one row.

-- The rows of one period of an operator's budget.
CREATE OR REPLACE FUNCTION shard_count() RETURNS int LANGUAGE sql IMMUTABLE AS $$
    SELECT 8
$$;

-- The limit in force at a moment; a raise applies until it ends. In nano-dollars.
CREATE OR REPLACE FUNCTION limit_at(p_budget budget, p_at timestamptz) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_budget.raised_until > p_at
        THEN greatest(p_budget.limit_nano, p_budget.raised_to_nano) ELSE p_budget.limit_nano END
$$;

-- The start and the end of the day, week, month or total that a moment lies in, in a time zone.
CREATE OR REPLACE FUNCTION period_bounds(
    p_period text, p_at timestamptz, p_zone text,
    OUT starts_at timestamptz, OUT ends_at timestamptz
) LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_step interval;
    v_local timestamp;
BEGIN
    IF p_period = 'total' THEN
        starts_at := '-infinity';
        ends_at := 'infinity';
        RETURN;
    END IF;
    v_step := ('1 ' || p_period)::interval;
    v_local := date_trunc(p_period, p_at AT TIME ZONE p_zone);
    starts_at := v_local AT TIME ZONE p_zone;
    ends_at := (v_local + v_step) AT TIME ZONE p_zone;
    -- Where clocks are set back or forward at midnight, the local time can name another day.
    IF p_at < starts_at THEN
        ends_at := starts_at;
        starts_at := (v_local - v_step) AT TIME ZONE p_zone;
    ELSIF p_at >= ends_at THEN
        starts_at := ends_at;
        ends_at := (v_local + 2 * v_step) AT TIME ZONE p_zone;
    END IF;
END $$;

-- The ids of every budget that applies to a caller: the tenant's, the user's, the key's, and the
-- operator's if the house credential is used.
CREATE OR REPLACE FUNCTION applying_budgets(
    p_tenant_id uuid, p_api_key_id uuid, p_user_id uuid, p_livemode boolean, p_credential text
) RETURNS bigint[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_ids bigint[] := ARRAY(
        SELECT b.id FROM budget b
        WHERE b.tenant_id = p_tenant_id AND b.livemode = p_livemode
            AND (b.api_key_id IS NULL OR b.api_key_id = p_api_key_id)
            AND (b.user_id IS NULL OR b.user_id = p_user_id)
    );
BEGIN
    IF p_credential = 'house' THEN
        RETURN v_ids || ARRAY(
            SELECT b.id FROM budget b WHERE b.tenant_id IS NULL AND b.livemode = p_livemode
        );
    END IF;
    RETURN v_ids;
END $$;

-- The ids of a budget's rows at a moment; creates them if there are none.
--
-- p_shard picks one shard of the operator's budget, NULL all of them. Takes no locks on rows that
-- exist; if two sessions create a row at once, one of them succeeds.
CREATE OR REPLACE FUNCTION current_periods(p_budget bigint, p_at timestamptz, p_shard int)
RETURNS bigint[] LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp
SET enable_seqscan = off AS $$
DECLARE
    v_ids bigint[];
    v_tenant uuid;
    v_window text;
    v_zone text;
    v_start timestamptz;
    v_end timestamptz;
BEGIN
    FOR v_attempt IN 1 .. 2 LOOP
        v_ids := ARRAY(
            SELECT x.id FROM budget_period x
            -- Periods do not overlap: only the newest that has begun can be the current one, and
            -- the index finds it without the earlier ones.
            WHERE x.budget_id = p_budget AND p_at < x.period_end AND x.period_start = (
                    SELECT max(y.period_start) FROM budget_period y
                    WHERE y.budget_id = p_budget AND y.period_start <= p_at)
                AND (x.tenant_id IS NOT NULL OR p_shard IS NULL OR x.shard = p_shard)
        );
        IF cardinality(v_ids) > 0 THEN
            RETURN v_ids;
        END IF;
        SELECT b.tenant_id, b.period, b.time_zone INTO v_tenant, v_window, v_zone
        FROM budget b WHERE b.id = p_budget;
        IF v_tenant IS NOT NULL THEN
            SELECT t.time_zone INTO v_zone FROM tenant t WHERE t.id = v_tenant;
        END IF;
        SELECT starts_at, ends_at INTO v_start, v_end FROM period_bounds(v_window, p_at, v_zone);
        -- After a change of the time zone, the new period must not overlap one that exists:
        -- every moment lies in exactly one.
        SELECT greatest(v_start, max(x.period_end) FILTER (WHERE x.period_end <= p_at)),
            least(v_end, min(x.period_start) FILTER (WHERE x.period_start > p_at))
        INTO v_start, v_end FROM budget_period x WHERE x.budget_id = p_budget;
        INSERT INTO budget_period (budget_id, tenant_id, shard, period_start, period_end)
        SELECT p_budget, v_tenant, s.shard, v_start, v_end
        FROM generate_series(0, CASE WHEN v_tenant IS NULL THEN shard_count() - 1 ELSE 0 END)
            AS s(shard)
        ON CONFLICT DO NOTHING;
    END LOOP;
    RAISE EXCEPTION 'budget % has no period at %', p_budget, p_at;
END $$;

-- Invalidate the allotments of an operator's budget, after a change of enforcement and after a call
-- that cost more than it had reserved. The next request that finds its shard short divides the limit
-- again.
CREATE OR REPLACE FUNCTION begin_division() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'budget' THEN
        NEW.division := OLD.division + 1;
    ELSE
        UPDATE budget SET division = division + 1 WHERE id = NEW.budget_id;
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE TRIGGER budget_division BEFORE UPDATE ON budget
    FOR EACH ROW WHEN (NEW.enforcement <> OLD.enforcement)
    EXECUTE FUNCTION begin_division();
CREATE OR REPLACE TRIGGER budget_period_division AFTER UPDATE ON budget_period
    FOR EACH ROW WHEN (NEW.breach_nano > OLD.breach_nano AND NEW.tenant_id IS NULL)
    EXECUTE FUNCTION begin_division();
