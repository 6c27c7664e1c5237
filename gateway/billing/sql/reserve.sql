-- Reserve the quotes of a batch of requests on every budget that applies to them, in one commit.
--
-- A quote is reserved on all budgets of its request or on none. The steps: lock the current periods
-- of the budgets of all callers, decide on each request in turn, write the decisions. Batches are
-- worked tenant by tenant, and each statement touches the rows of one tenant or of the operator's
-- budgets; all share the commit.

-- The shard of the operator's budgets that a gateway uses, 0 to 7.
CREATE OR REPLACE FUNCTION shard_of(p_instance uuid) RETURNS int LANGUAGE sql IMMUTABLE AS $$
    SELECT ('x' || right(p_instance::text, 7))::bit(28)::int % shard_count()
$$;

-- Lock the current periods of every budget that applies to one of the requests.
--
-- p_shard is the one shard to take of each of the operator's budgets; NULL takes them all. Returns
-- the periods by tenant and id, the operator's last.
-- Locks: budget_period rows by tenant and id, then house_budget_period rows by shard and id.
CREATE OR REPLACE FUNCTION lock_periods(p_requests jsonb, p_at timestamptz, p_shard int)
RETURNS locked_period[] LANGUAGE plpgsql AS $$
DECLARE
    v_locked locked_period[] := '{}';
    v_is_house boolean := false;
    c record;
BEGIN
    FOR c IN
        SELECT x.tenant_id, array_agg(x.api_key_id) AS keys, array_agg(x.user_id) AS users,
            array_agg(x.livemode) AS livemodes,
            bool_or(x.credential = 'house' AND x.livemode) AS is_house
        FROM (
            SELECT DISTINCT r.tenant_id, r.api_key_id, r.user_id, r.livemode, r.credential
            FROM jsonb_to_recordset(p_requests) AS r(
                tenant_id uuid, api_key_id uuid, user_id uuid, livemode boolean, credential text)
        ) x
        GROUP BY x.tenant_id ORDER BY x.tenant_id
    LOOP
        v_locked := v_locked || lock_tenant_periods(
            c.tenant_id, c.keys, c.users, c.livemodes, p_at);
        v_is_house := v_is_house OR c.is_house;
    END LOOP;
    RETURN v_locked || CASE WHEN v_is_house THEN lock_house_periods(p_at, p_shard) ELSE '{}' END;
END $$;

-- Select the locked periods that apply to a caller: their positions, and the ids of the tenant's and
-- of the operator's. p_first is the position of the tenant's first period; p_shard, the shard of the
-- operator's budgets that decides.
CREATE OR REPLACE FUNCTION applying_periods(
    p_periods locked_period[], p_first int, p_tenant_id uuid, p_api_key_id uuid, p_user_id uuid,
    p_livemode boolean, p_credential text, p_shard int,
    OUT positions int[], OUT own bigint[], OUT house bigint[]
) LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_position int := p_first;
    p locked_period := p_periods[p_first];
BEGIN
    own := '{}';
    WHILE p.tenant_id = p_tenant_id LOOP
        IF p.livemode = p_livemode
            AND (p.api_key_id IS NULL OR p.api_key_id IS NOT DISTINCT FROM p_api_key_id)
            AND (p.user_id IS NULL OR p.user_id IS NOT DISTINCT FROM p_user_id)
        THEN
            positions := positions || v_position;
            own := own || p.id;
        END IF;
        v_position := v_position + 1;
        p := p_periods[v_position];
    END LOOP;
    IF p_credential <> 'house' OR NOT p_livemode THEN
        RETURN;
    END IF;
    -- The operator's are the last.
    v_position := cardinality(p_periods);
    p := p_periods[v_position];
    WHILE p.shard IS NOT NULL LOOP
        IF p.shard = p_shard THEN
            positions := positions || v_position;
            house := p.id || house;
        END IF;
        v_position := v_position - 1;
        p := p_periods[v_position];
    END LOOP;
END $$;

-- Write the held amounts to the periods. If all shards are locked, divide the remainder of the
-- operator's budgets equally among them.
CREATE OR REPLACE FUNCTION write_held(p_periods locked_period[], p_whole boolean) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    p locked_period;
BEGIN
    FOREACH p IN ARRAY p_periods LOOP
        CONTINUE WHEN p.held_nano = 0;
        IF p.shard IS NULL THEN
            UPDATE budget_period SET
                held_nano = held_nano + p.held_nano,
                soft_nano = soft_nano + CASE WHEN p.is_soft THEN p.held_nano ELSE 0 END,
                ceiling_nano = greatest(ceiling_nano, p.limit_nano)
            WHERE tenant_id = p.tenant_id AND id = p.id;
            CONTINUE;
        END IF;
        UPDATE house_budget_period SET
            held_nano = held_nano + p.held_nano,
            soft_nano = soft_nano + CASE WHEN p.is_soft THEN p.held_nano ELSE 0 END,
            ceiling_nano = greatest(ceiling_nano, p.limit_nano)
        WHERE shard = p.shard AND id = p.id;
        CONTINUE WHEN NOT p_whole;
        UPDATE house_budget_period x SET
            allotted_nano = CASE WHEN p.available_nano >= 0 THEN x.spent_nano + x.held_nano
                + p.available_nano / shard_count() END,
            -- While more than the limit is used, no single shard can know the remainder.
            allotted_of_nano = CASE WHEN p.available_nano >= 0 THEN p.limit_nano END,
            allotted_division = p.division
        FROM unnest(p_periods) AS u
        WHERE x.shard = u.shard AND x.id = u.id AND u.budget_id = p.budget_id;
    END LOOP;
END $$;

-- Record the first refusal by a budget in its period, and its event.
CREATE OR REPLACE FUNCTION note_exceeded(p locked_period) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p.shard IS NULL THEN
        UPDATE budget_period SET exceeded_of_nano = p.limit_nano
        WHERE tenant_id = p.tenant_id AND id = p.id;
        PERFORM note_budget_event('budget.exceeded', b, x.period_start, x.period_end, x.spent_nano,
            x.held_nano, p.limit_nano, NULL)
        FROM budget_period x JOIN budget b ON b.tenant_id = x.tenant_id AND b.id = x.budget_id
        WHERE x.tenant_id = p.tenant_id AND x.id = p.id;
    ELSE
        UPDATE house_budget_period SET exceeded_of_nano = p.limit_nano
        WHERE shard = p.shard AND id = p.id;
        PERFORM note_house_event('budget.exceeded', b, x.period_start, x.period_end, s.spent_nano,
            s.held_nano, p.limit_nano, NULL)
        FROM house_budget_period x JOIN house_budget b ON b.id = x.budget_id
        CROSS JOIN LATERAL house_sums(x.budget_id, x.period_start) s
        WHERE x.shard = p.shard AND x.id = p.id;
    END IF;
END $$;

-- Write the hold lines of a tenant's new reservations. In PL/pgSQL, which keeps the plan.
CREATE OR REPLACE FUNCTION add_hold_lines(p_tenant_id uuid, p_ids uuid[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ledger (
        reservation_id, seq, at, admitted_at, tenant_id, livemode, api_key_id, user_id,
        requested_model, served_model, kind, amount_nano, requests, images, text_input_tokens,
        image_input_tokens, text_output_tokens, image_output_tokens
    )
    SELECT r.id, 0, r.admitted_at, r.admitted_at, r.tenant_id, r.livemode, r.api_key_id, r.user_id,
        r.requested_model, r.served_model, 'hold', r.held_nano, 0, 0, 0, 0, 0, 0
    FROM reservation r WHERE r.tenant_id = p_tenant_id AND r.id = ANY (p_ids);
END $$;

-- Claim the idempotency key of a reservation; false if it was claimed before.
--
-- Waits for another gateway that is claiming the same key.
CREATE OR REPLACE FUNCTION claim_key(
    p_tenant_id uuid, p_reservation_id uuid, p_user_id uuid, p_livemode boolean, p_operation text,
    p_key text, p_request_hash text, p_at timestamptz
) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO idempotency_claim (
        tenant_id, reservation_id, user_id, livemode, operation, key, request_hash, claimed_at
    ) VALUES (
        p_tenant_id, p_reservation_id, p_user_id, p_livemode, p_operation, p_key,
        decode(p_request_hash, 'hex'), p_at
    ) ON CONFLICT (tenant_id, key, operation, livemode, user_id) DO NOTHING;
    RETURN FOUND;
END $$;

-- True if each of the periods at these positions is soft or has the amount available.
CREATE OR REPLACE FUNCTION has_available(
    p_periods locked_period[], p_positions int[], p_amount_nano bigint
) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(bool_and((p_periods[u.position]).is_soft
        OR coalesce((p_periods[u.position]).available_nano, -1) >= p_amount_nano), true)
    FROM unnest(p_positions) AS u(position)
$$;

-- The outcome of a request whose budgets are too short for its dearest model, by the quote of its
-- first model. p_own: the number of positions of the tenant's own budgets, which come first. If they
-- have the amount, all shards of the operator's budgets decide before it is refused.
CREATE OR REPLACE FUNCTION outcome_of_first_model(
    p_periods locked_period[], p_positions int[], p_own int, p_amount_nano bigint, p_whole boolean
) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN has_available(p_periods, p_positions, p_amount_nano) THEN 'held_least'
        WHEN NOT p_whole AND has_available(p_periods, p_positions[:p_own], p_amount_nano)
            THEN 'whole'
        ELSE 'budget_exceeded'
    END
$$;

-- Input: p_requests, JSON objects with id, tenant_id, api_key_id, user_id, livemode, operation,
-- requested_model, served_model, provider, credential, price_id, amount_nano (the quote),
-- ttl_seconds, terms, of a keyed request idempotency_key and request_hash, and of one with fallbacks
-- most_nano (the dearest quote of all); p_instance, the calling gateway; p_whole, true to decide
-- over all shards of the operator's budgets.
--
-- Output: one row per request. `outcome` is one of
--   held             the quote is reserved, or most_nano
--   held_least       the budgets are too short for most_nano; the quote is reserved
--   budget_exceeded  nothing is reserved; the further columns describe the short budget
--   claimed          its idempotency key was claimed before; nothing is reserved
--   whole            this gateway's shard is short and all must decide: call with p_whole
--   clock            the time in its id is a week off; it might have no partition
--
-- Locks: as lock_periods; then, for keyed requests, the entry of the unique index
-- idempotency_claim_owner, by tenant and then in the order of p_requests, which the caller sorts.
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
    v_first_id uuid := first_id(v_now - interval '7 days');
    v_last_id uuid := first_id(v_now + interval '7 days');
    v_shard int := CASE WHEN p_whole THEN 0 ELSE shard_of(p_instance) END;
    v_periods locked_period[] := lock_periods(
        p_requests, v_now, CASE WHEN NOT p_whole THEN v_shard END);
    v_tenant uuid;
    v_reserved uuid[] := '{}';
    v_first int := 1;
    v_positions int[];
    v_position int;
    v_own bigint[];
    v_house bigint[];
    v_caller text := '';
    v_amount bigint;
    v_name text;
    p locked_period;
    q record;
BEGIN
    FOR q IN
        SELECT r.* FROM ROWS FROM (jsonb_to_recordset(p_requests) AS (
            id uuid, tenant_id uuid, api_key_id uuid, user_id uuid, livemode boolean,
            operation text, requested_model text, served_model text, provider text,
            credential text, price_id bigint, amount_nano bigint, ttl_seconds int,
            idempotency_key text, request_hash text, terms jsonb, most_nano bigint
        )) WITH ORDINALITY AS r(
            id, tenant_id, api_key_id, user_id, livemode, operation, requested_model, served_model,
            provider, credential, price_id, amount_nano, ttl_seconds, idempotency_key,
            request_hash, terms, most_nano, number)
        ORDER BY r.tenant_id, r.number
    LOOP
        SELECT q.id, CASE WHEN q.id >= v_first_id AND q.id < v_last_id THEN 'held' ELSE 'clock' END,
            NULL, NULL, NULL, NULL, NULL, NULL
        INTO request_id, outcome, budget, owner, window_name, budget_limit, available, resets_at;
        IF v_tenant <> q.tenant_id THEN
            PERFORM add_hold_lines(v_tenant, v_reserved);
            v_reserved := '{}';
        END IF;
        v_tenant := q.tenant_id;
        -- Requests of one caller are mostly consecutive. Key and user may be NULL, so each is
        -- compared separately.
        v_name := concat_ws(' ', q.tenant_id, coalesce(q.api_key_id::text, '-'),
            coalesce(q.user_id::text, '-'), q.livemode, q.credential);
        IF v_caller <> v_name THEN
            v_caller := v_name;
            WHILE v_periods[v_first].tenant_id < q.tenant_id LOOP
                v_first := v_first + 1;
            END LOOP;
            SELECT coalesce(a.positions, '{}'), a.own, a.house INTO v_positions, v_own, v_house
            FROM applying_periods(v_periods, v_first, q.tenant_id, q.api_key_id, q.user_id,
                q.livemode, q.credential, v_shard) a;
        END IF;
        v_amount := coalesce(q.most_nano, q.amount_nano);
        FOREACH v_position IN ARRAY v_positions LOOP
            p := v_periods[v_position];
            -- NULL: a shard without a part of the limit in force has nothing available.
            IF NOT p.is_soft AND coalesce(p.available_nano, -1) < v_amount THEN
                outcome := CASE WHEN p.shard IS NULL OR p_whole THEN 'budget_exceeded'
                    ELSE 'whole' END;
                EXIT;
            END IF;
        END LOOP;
        IF outcome = 'budget_exceeded' AND q.amount_nano < v_amount THEN
            v_amount := q.amount_nano;
            outcome := outcome_of_first_model(
                v_periods, v_positions, cardinality(v_own), v_amount, p_whole);
        END IF;
        -- A repeated key gets its first answer, also where the budget is spent by now.
        IF q.idempotency_key IS NOT NULL AND outcome NOT LIKE 'held%' AND is_claimed(
            q.tenant_id, q.user_id, q.livemode, q.operation, q.idempotency_key)
        THEN
            outcome := 'claimed';
        ELSIF outcome = 'budget_exceeded' THEN
            IF NOT p.is_exceeded THEN
                v_periods[v_position].is_exceeded := true;
                PERFORM note_exceeded(p);
            END IF;
            SELECT p.budget_id, CASE WHEN p.shard IS NOT NULL THEN 'house'
                    WHEN p.api_key_id IS NOT NULL THEN 'key'
                    WHEN p.user_id IS NOT NULL THEN 'user' ELSE 'tenant' END,
                p.window_name, p.limit_nano, greatest(p.available_nano, 0),
                nullif(p.period_end, 'infinity')
            INTO budget, owner, window_name, budget_limit, available, resets_at;
        ELSIF outcome LIKE 'held%' AND q.idempotency_key IS NOT NULL THEN
            outcome := CASE WHEN claim_key(q.tenant_id, q.id, q.user_id, q.livemode, q.operation,
                q.idempotency_key, q.request_hash, v_now) THEN outcome ELSE 'claimed' END;
        END IF;
        IF outcome LIKE 'held%' THEN
            INSERT INTO reservation (
                id, tenant_id, livemode, api_key_id, user_id, periods, house_shard, house_periods,
                operation, requested_model, served_model, provider, credential, price_id,
                held_nano, instance, admitted_at, deadline_at, terms
            ) VALUES (
                q.id, q.tenant_id, q.livemode, q.api_key_id, q.user_id, v_own,
                CASE WHEN v_house IS NOT NULL THEN v_shard END, v_house, q.operation,
                q.requested_model, q.served_model, q.provider, q.credential, q.price_id,
                v_amount, p_instance, v_now, v_now + make_interval(secs => q.ttl_seconds),
                q.terms
            );
            v_reserved := v_reserved || q.id;
            FOREACH v_position IN ARRAY v_positions LOOP
                v_periods[v_position].available_nano :=
                    v_periods[v_position].available_nano - v_amount;
                v_periods[v_position].held_nano := v_periods[v_position].held_nano + v_amount;
            END LOOP;
        END IF;
        RETURN NEXT;
    END LOOP;
    PERFORM add_hold_lines(v_tenant, v_reserved);
    PERFORM write_held(v_periods, p_whole);
END $$;

REVOKE ALL ON FUNCTION reserve(jsonb, uuid, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reserve(jsonb, uuid, boolean) TO image_gateway_app;
