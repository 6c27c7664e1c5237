"""The money functions: reserve, settle, expire and estimate, and the view that judges them.

They run with the owner's rights, each many reservations in one commit. The serving role may call
them and read what they write; it may not write it otherwise.
"""

from alembic import op

revision = "2026_11_20_02_money"
down_revision = "2026_11_20_01_tables"

# A midnight can happen twice or never where clocks change at midnight: the bounds are then moved
# by one period, so that every instant lies in exactly one.
PERIOD_BOUNDS = """
CREATE FUNCTION period_bounds(
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
    IF p_at < starts_at THEN
        ends_at := starts_at;
        starts_at := (v_local - v_step) AT TIME ZONE p_zone;
    ELSIF p_at >= ends_at THEN
        starts_at := ends_at;
        ends_at := (v_local + 2 * v_step) AT TIME ZONE p_zone;
    END IF;
END $$
"""

# Plans of a function are kept as long as a connection. One that was made while the tables were empty
# must still be right when they are full: every query below finds its rows by an index and a value
# (no joins that could read a whole table), and `enable_seqscan = off` keeps it so.
#
# Lock order, the same in every function: reservations by id, then budget periods by id; new periods
# are inserted by budget id, before anything is locked.
# A tenant that changes its time zone finishes the period it is in; the next begins where it ends.
CURRENT_PERIOD = """
CREATE FUNCTION current_period(p_budget bigint, p_at timestamptz) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
DECLARE
    v_id bigint;
    v_tenant uuid;
    v_window text;
    v_zone text;
    v_start timestamptz;
    v_end timestamptz;
BEGIN
    SELECT x.id INTO v_id FROM budget_period x
    WHERE x.budget_id = p_budget AND x.period_start <= p_at AND p_at < x.period_end;
    IF FOUND THEN
        RETURN v_id;
    END IF;
    SELECT b.tenant_id, b.period INTO v_tenant, v_window FROM budget b WHERE b.id = p_budget;
    SELECT t.time_zone INTO v_zone FROM tenant t WHERE t.id = v_tenant;
    SELECT starts_at, ends_at INTO v_start, v_end FROM period_bounds(v_window, p_at, v_zone);
    -- Never across a period that exists already: every instant lies in exactly one.
    INSERT INTO budget_period (budget_id, tenant_id, period_start, period_end)
    SELECT p_budget, v_tenant,
        greatest(v_start, max(x.period_end) FILTER (WHERE x.period_end <= p_at)),
        least(v_end, min(x.period_start) FILTER (WHERE x.period_start > p_at))
    FROM budget_period x WHERE x.budget_id = p_budget
    ON CONFLICT DO NOTHING;
    SELECT x.id INTO v_id FROM budget_period x
    WHERE x.budget_id = p_budget AND x.period_start <= p_at AND p_at < x.period_end;
    RETURN v_id;
END $$
"""

RESERVE = """
CREATE FUNCTION reserve(p_requests jsonb, p_instance uuid)
RETURNS TABLE (
    request_id uuid, outcome text, budget bigint, owner text, window_name text,
    budget_limit bigint, available bigint, resets_at timestamptz
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
    v_budgets bigint[];
    v_found bigint[];
    v_budget bigint;
    v_locked bigint[];
    v_of_budget bigint[];
    v_limits bigint[];
    v_available bigint[];
    v_held bigint[];
    v_positions int[];
    v_position int;
    v_short int;
    v_caller text := '';
    q record;
BEGIN
    FOR q IN
        SELECT DISTINCT x.tenant_id, x.api_key_id, x.user_id, x.livemode
        FROM jsonb_to_recordset(p_requests)
            AS x(tenant_id uuid, api_key_id uuid, user_id uuid, livemode boolean)
    LOOP
        v_budgets := v_budgets || ARRAY(
            SELECT b.id FROM budget b
            WHERE b.tenant_id = q.tenant_id AND b.livemode = q.livemode
                AND (b.api_key_id IS NULL OR b.api_key_id = q.api_key_id)
                AND (b.user_id IS NULL OR b.user_id = q.user_id)
        );
    END LOOP;
    v_budgets := ARRAY(SELECT DISTINCT u.id FROM unnest(v_budgets) AS u(id) ORDER BY u.id);
    FOREACH v_budget IN ARRAY v_budgets LOOP
        v_found := v_found || current_period(v_budget, v_now);
    END LOOP;
    SELECT array_agg(l.id), array_agg(l.budget_id), array_agg(l.limit_nano),
        array_agg(l.limit_nano - l.used_nano), array_agg(0::bigint)
    INTO v_locked, v_of_budget, v_limits, v_available, v_held
    FROM (
        SELECT bp.id, bp.budget_id, bp.spent_nano + bp.held_nano AS used_nano,
            (SELECT b.limit_nano FROM budget b WHERE b.id = bp.budget_id) AS limit_nano
        FROM budget_period bp WHERE bp.id = ANY (v_found) ORDER BY bp.id FOR UPDATE
    ) l;

    FOR q IN
        SELECT r.* FROM jsonb_to_recordset(p_requests) AS r(
            id uuid, tenant_id uuid, api_key_id uuid, user_id uuid, livemode boolean,
            operation text, requested_model text, served_model text, provider text,
            credential text, price_id bigint, amount_nano bigint, ttl_seconds int
        )
    LOOP
        request_id := q.id;
        -- Requests of one caller mostly follow one another: his budgets are looked up once.
        IF v_caller <> concat_ws(' ', q.api_key_id, q.user_id, q.livemode) THEN
            v_caller := concat_ws(' ', q.api_key_id, q.user_id, q.livemode);
            v_positions := ARRAY(
                SELECT array_position(v_of_budget, b.id) FROM budget b
                WHERE b.tenant_id = q.tenant_id AND b.livemode = q.livemode
                    AND (b.api_key_id IS NULL OR b.api_key_id = q.api_key_id)
                    AND (b.user_id IS NULL OR b.user_id = q.user_id)
            );
        END IF;
        -- A budget that came into being after the rows were locked: ask again, never pass it by.
        IF array_position(v_positions, NULL) IS NOT NULL THEN
            SELECT 'again', NULL, NULL, NULL, NULL, NULL, NULL
            INTO outcome, budget, owner, window_name, budget_limit, available, resets_at;
            RETURN NEXT;
            CONTINUE;
        END IF;
        v_short := NULL;
        FOREACH v_position IN ARRAY v_positions LOOP
            IF v_available[v_position] < q.amount_nano THEN
                v_short := v_position;
                EXIT;
            END IF;
        END LOOP;
        IF v_short IS NOT NULL THEN
            SELECT 'budget_exceeded', b.id,
                CASE WHEN b.api_key_id IS NOT NULL THEN 'key'
                     WHEN b.user_id IS NOT NULL THEN 'user' ELSE 'tenant' END,
                b.period, v_limits[v_short], greatest(v_available[v_short], 0),
                (SELECT nullif(bp.period_end, 'infinity') FROM budget_period bp
                 WHERE bp.id = v_locked[v_short])
            INTO outcome, budget, owner, window_name, budget_limit, available, resets_at
            FROM budget b WHERE b.id = v_of_budget[v_short];
            RETURN NEXT;
            CONTINUE;
        END IF;
        FOREACH v_position IN ARRAY v_positions LOOP
            v_available[v_position] := v_available[v_position] - q.amount_nano;
            v_held[v_position] := v_held[v_position] + q.amount_nano;
        END LOOP;
        INSERT INTO reservation (
            id, tenant_id, livemode, api_key_id, user_id, periods, operation, requested_model,
            served_model, provider, credential, price_id, held_nano, instance, admitted_at,
            deadline_at
        ) VALUES (
            q.id, q.tenant_id, q.livemode, q.api_key_id, q.user_id,
            ARRAY(SELECT v_locked[u.position] FROM unnest(v_positions) AS u(position) ORDER BY 1),
            q.operation, q.requested_model, q.served_model, q.provider, q.credential, q.price_id,
            q.amount_nano, p_instance, v_now, v_now + make_interval(secs => q.ttl_seconds)
        );
        INSERT INTO ledger (
            reservation_id, seq, at, tenant_id, livemode, api_key_id, user_id, requested_model,
            served_model, kind, amount_nano, requests, images, text_input_tokens,
            image_input_tokens, text_output_tokens, image_output_tokens
        ) VALUES (
            q.id, 0, v_now, q.tenant_id, q.livemode, q.api_key_id, q.user_id, q.requested_model,
            q.served_model, 'hold', q.amount_nano, 0, 0, 0, 0, 0, 0
        );
        SELECT 'held', NULL, NULL, NULL, NULL, NULL, NULL
        INTO outcome, budget, owner, window_name, budget_limit, available, resets_at;
        RETURN NEXT;
    END LOOP;

    FOR v_position IN 1 .. coalesce(cardinality(v_locked), 0) LOOP
        UPDATE budget_period SET
            held_nano = held_nano + v_held[v_position],
            ceiling_nano = greatest(ceiling_nano, v_limits[v_position])
        WHERE id = v_locked[v_position] AND v_held[v_position] > 0;
    END LOOP;
END $$
"""

# A reservation resolves once. What comes after an estimate or a void is the truth, and is written
# as the difference: `posted` never changes.
SETTLE = """
CREATE FUNCTION settle(p_settlements jsonb)
RETURNS TABLE (settled_id uuid, result text, breach bigint)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
    v_ids uuid[];
    v_touched bigint[];
    v_periods bigint[];
    v_spent bigint[];
    v_held bigint[];
    v_breach bigint[];
    v_change bigint;
    v_released bigint;
    v_kind text;
    v_index int;
    v_period bigint;
    v_before record;
    r reservation;
    s record;
BEGIN
    v_ids := ARRAY(SELECT x.id FROM jsonb_to_recordset(p_settlements) AS x(id uuid));
    PERFORM 1 FROM reservation WHERE id = ANY (v_ids) ORDER BY id FOR UPDATE;
    v_touched := ARRAY(
        SELECT DISTINCT u.id FROM reservation o CROSS JOIN LATERAL unnest(o.periods) AS u(id)
        WHERE o.id = ANY (v_ids)
    );
    SELECT array_agg(l.id), array_agg(0::bigint), array_agg(0::bigint), array_agg(0::bigint)
    INTO v_periods, v_spent, v_held, v_breach
    FROM (
        SELECT bp.id FROM budget_period bp WHERE bp.id = ANY (v_touched)
        ORDER BY bp.id FOR UPDATE
    ) l;

    FOR s IN
        SELECT x.* FROM jsonb_to_recordset(p_settlements) AS x(
            id uuid, kind text, amount_nano bigint, outcome text, images int,
            text_input_tokens bigint, image_input_tokens bigint, text_output_tokens bigint,
            image_output_tokens bigint, stored jsonb
        )
    LOOP
        settled_id := s.id;
        breach := 0;
        IF s.kind NOT IN ('post', 'post_est', 'void', 'unknown') OR s.amount_nano < 0 THEN
            RAISE EXCEPTION 'settlement of % is not valid: % %', s.id, s.kind, s.amount_nano;
        END IF;
        SELECT * INTO r FROM reservation WHERE id = s.id;
        IF NOT FOUND THEN
            result := 'missing';
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF r.state = 'posted' THEN
            result := CASE WHEN s.kind = 'post' AND s.amount_nano <> r.final_nano
                THEN 'conflict' ELSE 'already' END;
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF s.kind = 'unknown' THEN
            result := 'already';
            IF r.state = 'held' THEN
                UPDATE reservation SET state = 'unknown', outcome = s.outcome WHERE id = s.id;
                result := 'ok';
            END IF;
            RETURN NEXT;
            CONTINUE;
        END IF;
        -- After an estimate or a void, only an answer may correct: with its usage, or without it
        -- but with images that are not on record yet.
        IF r.state IN ('posted_est', 'void') AND s.kind <> 'post' AND (
            s.kind <> 'post_est' OR s.stored IS NULL
            OR EXISTS (SELECT 1 FROM image i WHERE i.reservation_id = s.id)
        ) THEN
            result := 'already';
            RETURN NEXT;
            CONTINUE;
        END IF;

        v_released := CASE WHEN r.final_nano IS NULL THEN r.held_nano ELSE 0 END;
        v_change := CASE s.kind WHEN 'void' THEN 0 ELSE s.amount_nano END
            - coalesce(r.final_nano, 0);
        v_kind := CASE WHEN r.final_nano IS NULL THEN s.kind ELSE 'adjust' END;
        breach := greatest(v_change - v_released, 0);
        FOREACH v_period IN ARRAY r.periods LOOP
            v_index := array_position(v_periods, v_period);
            v_spent[v_index] := v_spent[v_index] + v_change;
            v_held[v_index] := v_held[v_index] + v_released;
            v_breach[v_index] := v_breach[v_index] + breach;
        END LOOP;
        UPDATE reservation SET
            state = CASE s.kind WHEN 'post' THEN 'posted' WHEN 'post_est' THEN 'posted_est'
                ELSE 'void' END,
            final_nano = coalesce(r.final_nano, 0) + v_change,
            outcome = s.outcome, resolved_at = v_now
        WHERE id = s.id;
        SELECT max(l.seq) + 1 AS seq, sum(l.requests) AS requests, sum(l.images) AS images,
            sum(l.text_input_tokens) AS text_in, sum(l.image_input_tokens) AS image_in,
            sum(l.text_output_tokens) AS text_out, sum(l.image_output_tokens) AS image_out
        INTO v_before FROM ledger l WHERE l.reservation_id = s.id;
        INSERT INTO ledger (
            reservation_id, seq, at, tenant_id, livemode, api_key_id, user_id, requested_model,
            served_model, kind, amount_nano, requests, images, text_input_tokens,
            image_input_tokens, text_output_tokens, image_output_tokens
        ) VALUES (
            s.id, v_before.seq, v_now, r.tenant_id, r.livemode, r.api_key_id, r.user_id,
            r.requested_model, r.served_model, v_kind, v_change,
            (s.kind <> 'void')::int - v_before.requests,
            coalesce(s.images, 0) - v_before.images,
            coalesce(s.text_input_tokens, 0) - v_before.text_in,
            coalesce(s.image_input_tokens, 0) - v_before.image_in,
            coalesce(s.text_output_tokens, 0) - v_before.text_out,
            coalesce(s.image_output_tokens, 0) - v_before.image_out
        );
        IF s.stored IS NOT NULL THEN
            INSERT INTO image (
                id, tenant_id, livemode, reservation_id, path, media_type, size_bytes,
                created_at, expires_at
            )
            SELECT i.id, r.tenant_id, r.livemode, s.id, i.path, i.media_type, i.size_bytes,
                v_now, v_now + make_interval(secs => i.ttl_seconds)
            FROM jsonb_to_recordset(s.stored)
                AS i(id text, path text, media_type text, size_bytes bigint, ttl_seconds int);
        END IF;
        result := 'ok';
        RETURN NEXT;
    END LOOP;

    FOR v_index IN 1 .. coalesce(cardinality(v_periods), 0) LOOP
        UPDATE budget_period SET
            spent_nano = spent_nano + v_spent[v_index],
            held_nano = held_nano - v_held[v_index],
            breach_nano = breach_nano + v_breach[v_index]
        WHERE id = v_periods[v_index] AND (v_spent[v_index] <> 0 OR v_held[v_index] <> 0);
    END LOOP;
END $$
"""

EXPIRE = """
CREATE FUNCTION expire_reservations(p_limit int) RETURNS int
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
    WITH late AS (
        SELECT id FROM reservation
        WHERE state = 'held' AND deadline_at < clock_timestamp()
        ORDER BY deadline_at LIMIT p_limit FOR UPDATE SKIP LOCKED
    ), marked AS (
        UPDATE reservation SET state = 'unknown', outcome = 'expired'
        WHERE id IN (SELECT id FROM late) RETURNING 1
    )
    SELECT count(*)::int FROM marked
$$
"""

ESTIMATE = """
CREATE FUNCTION estimate_unknown(p_after interval, p_limit int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
DECLARE
    v_batch jsonb;
BEGIN
    SELECT jsonb_agg(jsonb_build_object(
        'id', u.id, 'kind', 'post_est', 'amount_nano', u.held_nano, 'outcome', 'estimated'))
    INTO v_batch
    FROM (
        SELECT id, held_nano FROM reservation
        WHERE state = 'unknown' AND admitted_at + p_after < clock_timestamp()
            AND deadline_at < clock_timestamp()
        ORDER BY id LIMIT p_limit FOR UPDATE SKIP LOCKED
    ) u;
    IF v_batch IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM settle(v_batch);
    RETURN jsonb_array_length(v_batch);
END $$
"""

IMMUTABLE = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$
"""

INVARIANT_BREAK = """
CREATE VIEW invariant_break WITH (security_invoker = true) AS
SELECT 'I1 budget is not the sum of its reservations' AS what, bp.id::text AS id
FROM budget_period bp
LEFT JOIN (
    SELECT u.period, coalesce(sum(r.final_nano), 0) AS spent,
        coalesce(sum(r.held_nano) FILTER (WHERE r.final_nano IS NULL), 0) AS held
    FROM reservation r CROSS JOIN LATERAL unnest(r.periods) AS u(period) GROUP BY u.period
) q ON q.period = bp.id
WHERE bp.spent_nano <> coalesce(q.spent, 0) OR bp.held_nano <> coalesce(q.held, 0)
UNION ALL
SELECT 'I1 budget overspent', bp.id::text FROM budget_period bp
WHERE bp.spent_nano + bp.held_nano > bp.ceiling_nano + bp.breach_nano
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
WHERE r.state = 'unknown' AND r.admitted_at + interval '24 hours' < clock_timestamp()
"""


def upgrade() -> None:
    """Create the functions, the trigger and the view."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statement in (PERIOD_BOUNDS, CURRENT_PERIOD, RESERVE, SETTLE, EXPIRE, ESTIMATE, IMMUTABLE):
        op.execute(statement)
    for table in ("ledger", "price"):
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
    op.execute(INVARIANT_BREAK)
