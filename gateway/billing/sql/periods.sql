-- Budgets and their periods: the bounds of periods, and the current periods of budgets, locked.
--
-- A period is the bounds of one day, week, month or total, and the amounts spent and held in it. A
-- tenant's budget has one row per period, in budget_period. The operator's budget over all tenants
-- has eight in house_budget_period, its shards, so that gateways do not queue for one row.
--
-- Every statement touches the rows of one tenant, or those of the operator's budgets.

-- The rows of one period of an operator's budget.
CREATE OR REPLACE FUNCTION shard_count() RETURNS int LANGUAGE sql IMMUTABLE AS $$
    SELECT 8
$$;

-- The limit in force at a moment; a raise applies until it ends. In nano-dollars.
CREATE OR REPLACE FUNCTION limit_at(
    p_limit_nano bigint, p_raised_to_nano bigint, p_raised_until timestamptz, p_at timestamptz
) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_raised_until > p_at
        THEN greatest(p_limit_nano, p_raised_to_nano) ELSE p_limit_nano END
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

-- Create the period of a tenant's budget that contains a moment.
--
-- If two sessions create it at once, one of them succeeds.
CREATE OR REPLACE FUNCTION add_period(p_tenant_id uuid, p_budget bigint, p_at timestamptz)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_start timestamptz;
    v_end timestamptz;
BEGIN
    SELECT p.starts_at, p.ends_at INTO v_start, v_end
    FROM budget b JOIN tenant t ON t.id = b.tenant_id
    CROSS JOIN LATERAL period_bounds(b.period, p_at, t.time_zone) p
    WHERE b.tenant_id = p_tenant_id AND b.id = p_budget;
    -- After a change of the time zone, the new period must not overlap one that exists: every
    -- moment lies in exactly one.
    SELECT greatest(v_start, max(x.period_end) FILTER (WHERE x.period_end <= p_at)),
        least(v_end, min(x.period_start) FILTER (WHERE x.period_start > p_at))
    INTO v_start, v_end
    FROM budget_period x WHERE x.tenant_id = p_tenant_id AND x.budget_id = p_budget;
    INSERT INTO budget_period (tenant_id, budget_id, period_start, period_end)
    VALUES (p_tenant_id, p_budget, v_start, v_end) ON CONFLICT DO NOTHING;
END $$;

-- Create the shards of the period of an operator's budget that contains a moment.
CREATE OR REPLACE FUNCTION add_house_period(p_budget bigint, p_at timestamptz) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_start timestamptz;
    v_end timestamptz;
BEGIN
    SELECT p.starts_at, p.ends_at INTO v_start, v_end
    FROM house_budget b CROSS JOIN LATERAL period_bounds(b.period, p_at, b.time_zone) p
    WHERE b.id = p_budget;
    -- As in add_period. All shards have the same periods.
    SELECT greatest(v_start, max(x.period_end) FILTER (WHERE x.period_end <= p_at)),
        least(v_end, min(x.period_start) FILTER (WHERE x.period_start > p_at))
    INTO v_start, v_end
    FROM house_budget_period x WHERE x.shard = 0 AND x.budget_id = p_budget;
    INSERT INTO house_budget_period (shard, budget_id, period_start, period_end)
    SELECT s.shard, p_budget, v_start, v_end FROM generate_series(0, shard_count() - 1) AS s(shard)
    ON CONFLICT DO NOTHING;
END $$;

-- The ids of the current periods of a tenant's budgets; creates missing ones. Takes no locks on
-- periods that exist.
CREATE OR REPLACE FUNCTION current_periods(
    p_tenant_id uuid, p_budgets bigint[], p_at timestamptz
) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    v_ids bigint[];
BEGIN
    FOR v_attempt IN 1 .. 2 LOOP
        -- Periods do not overlap: only the newest that has begun can be the current one, and the
        -- index finds it without the earlier ones.
        v_ids := ARRAY(
            SELECT x.id FROM unnest(p_budgets) AS u(id)
            CROSS JOIN LATERAL (
                SELECT y.id, y.period_end FROM budget_period y
                WHERE y.tenant_id = p_tenant_id AND y.budget_id = u.id AND y.period_start <= p_at
                ORDER BY y.period_start DESC LIMIT 1
            ) x
            WHERE p_at < x.period_end
        );
        IF cardinality(v_ids) = cardinality(p_budgets) THEN
            RETURN v_ids;
        END IF;
        PERFORM add_period(p_tenant_id, u.id, p_at) FROM unnest(p_budgets) AS u(id)
        WHERE u.id NOT IN (
            SELECT x.budget_id FROM budget_period x
            WHERE x.tenant_id = p_tenant_id AND x.id = ANY (v_ids));
    END LOOP;
    RAISE EXCEPTION 'a budget of tenant % has no period at %', p_tenant_id, p_at;
END $$;

-- The same of the operator's budgets, in these shards.
CREATE OR REPLACE FUNCTION current_house_periods(
    p_shards int[], p_budgets bigint[], p_at timestamptz
) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    v_ids bigint[];
BEGIN
    FOR v_attempt IN 1 .. 2 LOOP
        v_ids := ARRAY(
            SELECT x.id FROM unnest(p_budgets) AS u(id) CROSS JOIN unnest(p_shards) AS s(shard)
            JOIN house_budget_period x ON x.shard = s.shard AND x.budget_id = u.id
                AND p_at < x.period_end AND x.period_start = (
                    SELECT max(y.period_start) FROM house_budget_period y
                    WHERE y.shard = s.shard AND y.budget_id = u.id AND y.period_start <= p_at)
        );
        IF cardinality(v_ids) = cardinality(p_budgets) * cardinality(p_shards) THEN
            RETURN v_ids;
        END IF;
        PERFORM add_house_period(u.id, p_at) FROM unnest(p_budgets) AS u(id)
        WHERE u.id NOT IN (
            SELECT x.budget_id FROM house_budget_period x
            WHERE x.shard = ANY (p_shards) AND x.id = ANY (v_ids));
    END LOOP;
    RAISE EXCEPTION 'a budget of the operator has no period at %', p_at;
END $$;

-- Lock the current periods of those budgets of a tenant that apply to one of its callers: the
-- tenant's own, its users' and its keys'. Locks: budget_period, by id.
CREATE OR REPLACE FUNCTION lock_tenant_periods(
    p_tenant_id uuid, p_keys uuid[], p_users uuid[], p_livemodes boolean[], p_at timestamptz
) RETURNS locked_period[] LANGUAGE plpgsql AS $$
DECLARE
    v_ids bigint[];
    v_budgets bigint[] := ARRAY(
        SELECT b.id FROM budget b
        WHERE b.tenant_id = p_tenant_id AND b.livemode = ANY (p_livemodes)
            AND (b.api_key_id IS NULL OR b.api_key_id = ANY (p_keys))
            AND (b.user_id IS NULL OR b.user_id = ANY (p_users))
    );
BEGIN
    IF v_budgets = '{}' THEN
        RETURN '{}';
    END IF;
    v_ids := current_periods(p_tenant_id, v_budgets, p_at);
    RETURN ARRAY(
        SELECT ROW(
            b.tenant_id, b.api_key_id, b.user_id, b.livemode, NULL, l.id, b.id, b.period,
            l.period_end, b.enforcement = 'soft', NULL, f.limit_nano,
            f.limit_nano - l.spent_nano - l.held_nano, 0,
            coalesce(l.exceeded_of_nano >= f.limit_nano, false))::locked_period
        FROM (
            SELECT * FROM budget_period x WHERE x.tenant_id = p_tenant_id AND x.id = ANY (v_ids)
            ORDER BY x.id FOR UPDATE
        ) l
        JOIN budget b ON b.tenant_id = p_tenant_id AND b.id = l.budget_id
        CROSS JOIN LATERAL (
            SELECT limit_at(b.limit_nano, b.raised_to_nano, b.raised_until, p_at) AS limit_nano
        ) f
        ORDER BY l.id
    );
END $$;

-- Lock the current periods of the operator's budgets: one shard of each, or all (p_shard NULL). In
-- the latter case the first shard of each has the remainder of them all.
-- Locks: house_budget_period, by shard and id.
CREATE OR REPLACE FUNCTION lock_house_periods(p_at timestamptz, p_shard int)
RETURNS locked_period[] LANGUAGE plpgsql AS $$
DECLARE
    v_ids bigint[];
    v_budgets bigint[] := ARRAY(SELECT b.id FROM house_budget b);
    v_shards int[] := CASE WHEN p_shard IS NOT NULL THEN ARRAY[p_shard]
        ELSE ARRAY(SELECT generate_series(0, shard_count() - 1)) END;
BEGIN
    IF v_budgets = '{}' THEN
        RETURN '{}';
    END IF;
    v_ids := current_house_periods(v_shards, v_budgets, p_at);
    RETURN ARRAY(
        SELECT ROW(
            NULL, NULL, NULL, true, l.shard, l.id, b.id, b.period, l.period_end,
            b.enforcement = 'soft', b.division, f.limit_nano,
            CASE
                WHEN p_shard IS NULL THEN f.limit_nano
                    - sum(l.spent_nano + l.held_nano) OVER (PARTITION BY l.budget_id)
                -- An allotment is valid only for the limit that is in force.
                WHEN l.allotted_of_nano = f.limit_nano AND l.allotted_division = b.division
                    THEN l.allotted_nano - l.spent_nano - l.held_nano
            END, 0,
            coalesce(l.exceeded_of_nano >= f.limit_nano, false))::locked_period
        FROM (
            SELECT * FROM house_budget_period x
            WHERE x.shard = ANY (v_shards) AND x.id = ANY (v_ids)
            ORDER BY x.shard, x.id FOR UPDATE
        ) l
        JOIN house_budget b ON b.id = l.budget_id
        CROSS JOIN LATERAL (
            SELECT limit_at(b.limit_nano, b.raised_to_nano, b.raised_until, p_at) AS limit_nano
        ) f
        ORDER BY l.shard, l.id
    );
END $$;

-- Invalidate the allotments of an operator's budget, after a change of enforcement and after a call
-- that cost more than it had reserved. The next request that finds its shard short divides the limit
-- again.
CREATE OR REPLACE FUNCTION begin_division() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'house_budget' THEN
        NEW.division := OLD.division + 1;
    ELSE
        UPDATE house_budget SET division = division + 1 WHERE id = NEW.budget_id;
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE TRIGGER house_budget_division BEFORE UPDATE ON house_budget
    FOR EACH ROW WHEN (NEW.enforcement <> OLD.enforcement)
    EXECUTE FUNCTION begin_division();
CREATE OR REPLACE TRIGGER house_budget_period_division AFTER UPDATE ON house_budget_period
    FOR EACH ROW WHEN (NEW.breach_nano > OLD.breach_nano)
    EXECUTE FUNCTION begin_division();
