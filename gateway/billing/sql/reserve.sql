-- Reserve the quotes of a batch of requests on every budget that applies to them, in one commit.
--
-- A quote is reserved on all budgets of its request or on none. The steps: find the budgets of all
-- callers and their current periods, lock them, decide on each request in turn, write the decisions.

-- The shard of the operator's budgets that a gateway uses, 0 to 7.
CREATE OR REPLACE FUNCTION shard_of(p_instance uuid) RETURNS int LANGUAGE sql IMMUTABLE AS $$
    SELECT ('x' || right(p_instance::text, 7))::bit(28)::int % shard_count()
$$;

-- Find and lock the current periods of every budget that applies to one of the requests.
--
-- p_shard is the one shard to take of each of the operator's budgets; NULL takes them all, and
-- then the first of each stands for them all. Returns the periods as they are locked.
-- Locks: budget_period rows, by tenant and id, the operator's last.
CREATE OR REPLACE FUNCTION lock_periods(p_requests jsonb, p_at timestamptz, p_shard int)
RETURNS locked_period[] LANGUAGE plpgsql AS $$
DECLARE
    v_budgets bigint[];
    v_budget bigint;
    v_found bigint[];
    q record;
BEGIN
    FOR q IN
        SELECT DISTINCT x.tenant_id, x.api_key_id, x.user_id, x.livemode, x.credential
        FROM jsonb_to_recordset(p_requests) AS x(
            tenant_id uuid, api_key_id uuid, user_id uuid, livemode boolean, credential text)
    LOOP
        v_budgets := v_budgets || applying_budgets(
            q.tenant_id, q.api_key_id, q.user_id, q.livemode, q.credential);
    END LOOP;
    v_budgets := ARRAY(SELECT DISTINCT u.id FROM unnest(v_budgets) AS u(id) ORDER BY u.id);
    FOREACH v_budget IN ARRAY v_budgets LOOP
        v_found := v_found || current_periods(v_budget, p_at, p_shard);
    END LOOP;
    RETURN ARRAY(
        SELECT ROW(
            l.id, l.budget_id, l.tenant_id IS NULL, b.enforcement = 'soft', b.division, l.limit_nano,
            CASE
                WHEN l.tenant_id IS NOT NULL THEN l.limit_nano - l.used_nano
                WHEN p_shard IS NULL THEN
                    l.limit_nano - sum(l.used_nano) OVER (PARTITION BY l.budget_id)
                -- An allotment is valid only for the limit that is in force.
                WHEN l.allotted_of_nano = l.limit_nano AND l.allotted_division = b.division
                    THEN l.allotted_nano - l.used_nano
            END,
            0, coalesce(l.exceeded_of_nano >= l.limit_nano, false))::locked_period
        FROM (
            SELECT bp.id, bp.budget_id, bp.tenant_id, bp.spent_nano + bp.held_nano AS used_nano,
                bp.allotted_nano, bp.allotted_of_nano, bp.allotted_division, bp.exceeded_of_nano,
                (SELECT limit_at(o, p_at) FROM budget o WHERE o.id = bp.budget_id) AS limit_nano
            FROM budget_period bp WHERE bp.id = ANY (v_found)
            ORDER BY bp.tenant_id, bp.id FOR UPDATE
        ) l
        JOIN budget b ON b.id = l.budget_id
        ORDER BY l.tenant_id, l.id
    );
END $$;

-- Write the held amounts to the periods. If all shards are locked, divide the remainder of the
-- operator's budgets equally among them.
CREATE OR REPLACE FUNCTION write_held(p_periods locked_period[], p_whole boolean) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_ids bigint[];
    p locked_period;
BEGIN
    FOREACH p IN ARRAY p_periods LOOP
        CONTINUE WHEN p.held_nano = 0;
        UPDATE budget_period SET
            held_nano = held_nano + p.held_nano,
            soft_nano = soft_nano + CASE WHEN p.is_soft THEN p.held_nano ELSE 0 END,
            ceiling_nano = greatest(ceiling_nano, p.limit_nano)
        WHERE id = p.id;
    END LOOP;
    IF NOT p_whole THEN
        RETURN;
    END IF;
    v_ids := ARRAY(SELECT u.id FROM unnest(p_periods) AS u);
    FOREACH p IN ARRAY p_periods LOOP
        CONTINUE WHEN NOT p.is_house OR p.held_nano = 0;
        UPDATE budget_period bp SET
            allotted_nano = CASE WHEN p.available_nano >= 0 THEN bp.spent_nano + bp.held_nano
                + p.available_nano / shard_count()
                + CASE WHEN bp.id = p.id THEN p.available_nano % shard_count() ELSE 0 END END,
            -- While more than the limit is used, no single shard can know the remainder.
            allotted_of_nano = CASE WHEN p.available_nano >= 0 THEN p.limit_nano END,
            allotted_division = p.division
        WHERE bp.id = ANY (v_ids) AND bp.budget_id = p.budget_id;
    END LOOP;
END $$;

-- Record the first refusal by a budget in its period, and its event.
CREATE OR REPLACE FUNCTION note_exceeded(p_period locked_period) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    b budget;
    p budget_period;
    v_spent bigint;
    v_held bigint;
BEGIN
    UPDATE budget_period SET exceeded_of_nano = p_period.limit_nano WHERE id = p_period.id
    RETURNING * INTO p;
    SELECT * INTO b FROM budget WHERE id = p.budget_id;
    SELECT sum(x.spent_nano), sum(x.held_nano) INTO v_spent, v_held FROM budget_period x
    WHERE x.budget_id = p.budget_id AND x.period_start = p.period_start;
    PERFORM note_budget_event(
        'budget.exceeded', b, p, v_spent, v_held, p_period.limit_nano, NULL);
END $$;

-- Describe a short budget in the result of reserve.
CREATE OR REPLACE FUNCTION describe_short(
    p_period locked_period, OUT budget bigint, OUT owner text, OUT window_name text,
    OUT budget_limit bigint, OUT available bigint, OUT resets_at timestamptz
) LANGUAGE sql STABLE AS $$
    SELECT b.id,
        CASE WHEN b.tenant_id IS NULL THEN 'house' WHEN b.api_key_id IS NOT NULL THEN 'key'
             WHEN b.user_id IS NOT NULL THEN 'user' ELSE 'tenant' END,
        b.period, p_period.limit_nano, greatest(p_period.available_nano, 0),
        (SELECT nullif(bp.period_end, 'infinity') FROM budget_period bp WHERE bp.id = p_period.id)
    FROM budget b WHERE b.id = p_period.budget_id
$$;

-- Input: p_requests, JSON objects with id, tenant_id, api_key_id, user_id, livemode, operation,
-- requested_model, served_model, provider, credential, price_id, amount_nano (the quote),
-- ttl_seconds, terms, and of a keyed request idempotency_key and request_hash; p_instance, the
-- calling gateway; p_whole, true to decide over all shards of the operator's budgets.
--
-- Output: one row per request. `outcome` is one of
--   held             the quote is reserved
--   budget_exceeded  nothing is reserved; the further columns describe the short budget
--   claimed          its idempotency key was claimed before; nothing is reserved
--   whole            this gateway's shard is short and all must decide: call with p_whole
--   again            a budget was created between the look-up and the locks: call again
--
-- Locks: as lock_periods; then, for keyed requests, the entry of the unique index
-- reservation_claim, in the order of p_requests, which the caller sorts.
CREATE OR REPLACE FUNCTION reserve(p_requests jsonb, p_instance uuid, p_whole boolean)
RETURNS TABLE (
    request_id uuid, outcome text, budget bigint, owner text, window_name text,
    budget_limit bigint, available bigint, resets_at timestamptz
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
    v_periods locked_period[] := lock_periods(
        p_requests, v_now, CASE WHEN NOT p_whole THEN shard_of(p_instance) END);
    v_budgets bigint[] := ARRAY(SELECT u.budget_id FROM unnest(v_periods) AS u);
    v_reserved uuid[] := '{}';
    v_positions int[];
    v_position int;
    v_short int;
    v_caller text := '';
    v_name text;
    q record;
BEGIN
    FOR q IN
        SELECT r.* FROM jsonb_to_recordset(p_requests) AS r(
            id uuid, tenant_id uuid, api_key_id uuid, user_id uuid, livemode boolean,
            operation text, requested_model text, served_model text, provider text,
            credential text, price_id bigint, amount_nano bigint, ttl_seconds int,
            idempotency_key text, request_hash text, terms jsonb
        )
    LOOP
        SELECT q.id, NULL, NULL, NULL, NULL, NULL, NULL
        INTO request_id, budget, owner, window_name, budget_limit, available, resets_at;
        -- Requests of one caller are mostly consecutive: look up the budgets once. Key and user
        -- may be NULL, so each is compared separately.
        v_name := concat_ws(' ', q.tenant_id, coalesce(q.api_key_id::text, '-'),
            coalesce(q.user_id::text, '-'), q.livemode, q.credential);
        IF v_caller <> v_name THEN
            v_caller := v_name;
            v_positions := ARRAY(
                SELECT array_position(v_budgets, u.id) FROM unnest(applying_budgets(
                    q.tenant_id, q.api_key_id, q.user_id, q.livemode, q.credential)) AS u(id)
            );
        END IF;
        v_short := NULL;
        IF array_position(v_positions, NULL) IS NOT NULL THEN
            outcome := 'again';
            RETURN NEXT;
            CONTINUE;
        END IF;
        FOREACH v_position IN ARRAY v_positions LOOP
            -- NULL: a shard without a part of the limit in force has nothing available.
            IF NOT v_periods[v_position].is_soft
                AND coalesce(v_periods[v_position].available_nano, -1) < q.amount_nano
            THEN
                v_short := v_position;
                EXIT;
            END IF;
        END LOOP;
        -- A repeated key gets its first answer, also where the budget is spent by now. Where the
        -- budget is not short, the insertion below finds the claim.
        IF v_short IS NOT NULL AND q.idempotency_key IS NOT NULL AND is_claimed(
            q.tenant_id, q.user_id, q.livemode, q.operation, q.idempotency_key)
        THEN
            outcome := 'claimed';
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF v_short IS NOT NULL AND v_periods[v_short].is_house AND NOT p_whole THEN
            outcome := 'whole';
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF v_short IS NOT NULL THEN
            IF NOT v_periods[v_short].is_exceeded THEN
                v_periods[v_short].is_exceeded := true;
                PERFORM note_exceeded(v_periods[v_short]);
            END IF;
            SELECT 'budget_exceeded', d.* INTO outcome, budget, owner, window_name, budget_limit,
                available, resets_at
            FROM describe_short(v_periods[v_short]) d;
            RETURN NEXT;
            CONTINUE;
        END IF;
        INSERT INTO reservation (
            id, tenant_id, livemode, api_key_id, user_id, periods, operation, requested_model,
            served_model, provider, credential, price_id, held_nano, instance, admitted_at,
            deadline_at, idempotency_key, request_hash, terms
        ) VALUES (
            q.id, q.tenant_id, q.livemode, q.api_key_id, q.user_id,
            ARRAY(SELECT v_periods[u.position].id FROM unnest(v_positions) AS u(position) ORDER BY 1),
            q.operation, q.requested_model, q.served_model, q.provider, q.credential, q.price_id,
            q.amount_nano, p_instance, v_now, v_now + make_interval(secs => q.ttl_seconds),
            q.idempotency_key, decode(q.request_hash, 'hex'), q.terms
        )
        -- Waits for another gateway that is claiming the same key.
        ON CONFLICT (tenant_id, user_id, livemode, operation, idempotency_key)
            WHERE idempotency_key IS NOT NULL DO NOTHING;
        outcome := CASE WHEN FOUND THEN 'held' ELSE 'claimed' END;
        IF outcome = 'held' THEN
            v_reserved := v_reserved || q.id;
            FOREACH v_position IN ARRAY v_positions LOOP
                v_periods[v_position].available_nano :=
                    v_periods[v_position].available_nano - q.amount_nano;
                v_periods[v_position].held_nano := v_periods[v_position].held_nano + q.amount_nano;
            END LOOP;
        END IF;
        RETURN NEXT;
    END LOOP;
    PERFORM write_held(v_periods, p_whole);
    INSERT INTO ledger (
        reservation_id, seq, at, admitted_at, tenant_id, livemode, api_key_id, user_id,
        requested_model, served_model, kind, amount_nano, requests, images, text_input_tokens,
        image_input_tokens, text_output_tokens, image_output_tokens
    )
    SELECT r.id, 0, v_now, v_now, r.tenant_id, r.livemode, r.api_key_id, r.user_id,
        r.requested_model, r.served_model, 'hold', r.held_nano, 0, 0, 0, 0, 0, 0
    FROM reservation r WHERE r.id = ANY (v_reserved);
END $$;

REVOKE ALL ON FUNCTION reserve(jsonb, uuid, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reserve(jsonb, uuid, boolean) TO image_gateway_app;
