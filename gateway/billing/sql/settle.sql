-- Settle: record calls' outcomes on their reservations, budgets and the ledger, in one commit.
--
-- States: held -> posted | void | unknown; unknown -> posted | posted_est | void. A call that was
-- posted with its usage is final; an estimate or a void can still be corrected by the late answer
-- or by an operator, with a further ledger line of kind `adjust`.

-- Tell if the lines of a reservation are archived: every reservation has a line. Reading them also
-- keeps them from being archived until the transaction ends.
CREATE OR REPLACE FUNCTION is_archived(r reservation) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (
        SELECT 1 FROM ledger l WHERE l.tenant_id = r.tenant_id AND l.reservation_id = r.id
    )
$$;

-- Decide the result of a settlement for a reservation: ok, missing, already, conflict, or archived,
-- if it would correct a cost whose lines are archived: that cost is final.
--
-- `conflict` raises an alarm: the ledger has another cost than the one that is reported, or
-- counts a call as void that was sent.
CREATE OR REPLACE FUNCTION settlement_result(
    p_reservation reservation, p_kind text, p_amount_nano bigint, p_has_new_images boolean
) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN p_reservation.id IS NULL THEN 'missing'
        WHEN p_reservation.state = 'posted' THEN
            CASE WHEN p_kind = 'post' AND p_amount_nano <> p_reservation.final_nano
                THEN 'conflict' ELSE 'already' END
        WHEN p_kind = 'unknown' THEN
            CASE p_reservation.state WHEN 'held' THEN 'ok' WHEN 'void' THEN 'conflict'
                ELSE 'already' END
        -- After an estimate or a void, only an answer corrects: with its usage, or without it but
        -- with images that are not recorded yet.
        WHEN p_reservation.state IN ('posted_est', 'void') AND p_kind <> 'post'
            AND (p_kind <> 'post_est' OR NOT p_has_new_images) THEN 'already'
        WHEN p_reservation.final_nano IS NOT NULL AND is_archived(p_reservation) THEN 'archived'
        ELSE 'ok'
    END
$$;

-- Add the ledger line that brings a reservation to these totals; it holds the differences.
--
-- A total that is NULL is unchanged. The lines of a reservation are numbered from 0, its hold.
CREATE OR REPLACE FUNCTION add_ledger_line(
    r reservation, p_at timestamptz, p_kind text, p_change_nano bigint, p_requests int,
    p_images int, p_text_input bigint, p_image_input bigint, p_text_output bigint,
    p_image_output bigint
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    b ledger;  -- the totals of the lines before
BEGIN
    IF r.final_nano IS NULL THEN  -- only the hold exists, whose counts are zero
        SELECT 0, 0, 0, 0, 0, 0, 0 INTO b.seq, b.requests, b.images, b.text_input_tokens,
            b.image_input_tokens, b.text_output_tokens, b.image_output_tokens;
    ELSE
        SELECT max(l.seq), sum(l.requests), sum(l.images), sum(l.text_input_tokens),
            sum(l.image_input_tokens), sum(l.text_output_tokens), sum(l.image_output_tokens)
        INTO b.seq, b.requests, b.images, b.text_input_tokens, b.image_input_tokens,
            b.text_output_tokens, b.image_output_tokens
        FROM ledger l WHERE l.tenant_id = r.tenant_id AND l.reservation_id = r.id;
    END IF;
    INSERT INTO ledger (
        reservation_id, seq, at, admitted_at, tenant_id, livemode, api_key_id, user_id,
        requested_model, served_model, kind, amount_nano, requests, images, text_input_tokens,
        image_input_tokens, text_output_tokens, image_output_tokens
    ) VALUES (
        r.id, b.seq + 1, p_at, r.admitted_at, r.tenant_id, r.livemode, r.api_key_id, r.user_id,
        r.requested_model, r.served_model, p_kind, p_change_nano, p_requests - b.requests,
        coalesce(p_images - b.images, 0),
        coalesce(p_text_input - b.text_input_tokens, 0),
        coalesce(p_image_input - b.image_input_tokens, 0),
        coalesce(p_text_output - b.text_output_tokens, 0),
        coalesce(p_image_output - b.image_output_tokens, 0)
    );
    INSERT INTO usage_pending (tenant_id, reservation_id, seq) VALUES (r.tenant_id, r.id, b.seq + 1);
END $$;

-- Keep the answer to repeated requests, where the call has an idempotency key.
CREATE OR REPLACE FUNCTION keep_answer(p_tenant_id uuid, p_reservation_id uuid, p_answer jsonb)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE idempotency_claim SET answer = p_answer
    WHERE tenant_id = p_tenant_id AND reservation_id = p_reservation_id;
END $$;

-- Record the images of a call, given as JSON objects.
CREATE OR REPLACE FUNCTION add_images(r reservation, p_at timestamptz, p_stored jsonb)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO image (
        id, tenant_id, livemode, user_id, reservation_id, requested_model, path, media_type,
        size_bytes, width, height, seed, prompt, prompt_hash, provenance, created_at, expires_at
    )
    SELECT i.id, r.tenant_id, r.livemode, r.user_id, r.id, r.requested_model, i.path, i.media_type,
        i.size_bytes, i.width, i.height, i.seed, i.prompt, decode(i.prompt_hash, 'hex'),
        coalesce(i.provenance, 'original'), p_at, p_at + make_interval(secs => i.ttl_seconds)
    FROM jsonb_to_recordset(p_stored) AS i(
        id text, path text, media_type text, size_bytes bigint, ttl_seconds int,
        width int, height int, seed bigint, prompt text, prompt_hash text, provenance text
    );
END $$;

-- Lock the reservations to settle and the periods of their tenants' budgets, tenant by tenant.
--
-- Returns the ids of the periods with their tenants. Locks: of each tenant in turn, reservations by
-- id, then their budget_period rows by id.
CREATE OR REPLACE FUNCTION lock_settled(
    p_settlements jsonb, OUT periods bigint[], OUT tenants uuid[]
) LANGUAGE plpgsql AS $$
DECLARE
    v_touched bigint[];
    c record;
BEGIN
    FOR c IN
        SELECT x.tenant_id, array_agg(x.id) AS ids
        FROM jsonb_to_recordset(p_settlements) AS x(tenant_id uuid, id uuid)
        GROUP BY x.tenant_id ORDER BY x.tenant_id
    LOOP
        PERFORM 1 FROM reservation r WHERE r.tenant_id = c.tenant_id AND r.id = ANY (c.ids)
        ORDER BY r.id FOR UPDATE;
        v_touched := ARRAY(
            SELECT DISTINCT u.id FROM reservation r CROSS JOIN LATERAL unnest(r.periods) AS u(id)
            WHERE r.tenant_id = c.tenant_id AND r.id = ANY (c.ids) ORDER BY u.id
        );
        CONTINUE WHEN v_touched = '{}';
        PERFORM 1 FROM budget_period x WHERE x.tenant_id = c.tenant_id AND x.id = ANY (v_touched)
        ORDER BY x.id FOR UPDATE;
        periods := periods || v_touched;
        tenants := tenants || array_fill(c.tenant_id, ARRAY[cardinality(v_touched)]);
    END LOOP;
END $$;

-- Add the changes of settled calls to the periods of the operator's budgets.
-- Locks: house_budget_period, by shard and id.
CREATE OR REPLACE FUNCTION settle_house_periods(p_changes house_change[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    c record;
BEGIN
    FOR c IN
        SELECT u.shard, u.period_id, sum(u.spent_nano)::bigint AS spent_nano,
            sum(u.released_nano)::bigint AS released_nano, sum(u.breach_nano)::bigint AS breach_nano
        FROM unnest(p_changes) AS u GROUP BY 1, 2 ORDER BY 1, 2
    LOOP
        UPDATE house_budget_period SET
            spent_nano = spent_nano + c.spent_nano,
            held_nano = held_nano - c.released_nano,
            breach_nano = breach_nano + c.breach_nano
        WHERE shard = c.shard AND id = c.period_id;
    END LOOP;
END $$;

-- Input: p_settlements, JSON objects with tenant_id, id, kind (post, post_est, void, unknown),
-- amount_nano, outcome, images, the four token counts, stored (images), answer (of a keyed request),
-- quality and size of the images made, calls (as gateway/db/listed_calls.py writes them).
--
-- Output: one row per settlement. `result` is that of settlement_result; `breach`, the nano-dollars
-- by which the cost exceeds the reservation.
--
-- Locks: as lock_settled, then house_budget_period rows, as in reserve. The sweeper's estimates and
-- voids use it too.
CREATE OR REPLACE FUNCTION settle(p_settlements jsonb)
RETURNS TABLE (settled_id uuid, result text, breach bigint)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
    v_periods bigint[];
    v_tenants uuid[];
    v_spent bigint[];
    v_held bigint[];
    v_breach bigint[];
    v_house house_change[];
    v_change bigint;
    v_released bigint;
    v_index int;
    v_period bigint;
    v_is_charged boolean;
    v_has_new_images boolean;
    r reservation;
    s record;
BEGIN
    SELECT l.periods, l.tenants INTO v_periods, v_tenants FROM lock_settled(p_settlements) l;
    v_spent := array_fill(0::bigint, ARRAY[coalesce(cardinality(v_periods), 0)]);
    v_held := v_spent;
    v_breach := v_spent;

    FOR s IN
        SELECT x.* FROM jsonb_to_recordset(p_settlements) AS x(
            tenant_id uuid, id uuid, kind text, amount_nano bigint, outcome text, images int,
            text_input_tokens bigint, image_input_tokens bigint, text_output_tokens bigint,
            image_output_tokens bigint, stored jsonb, answer jsonb, quality text, size text, calls jsonb
        )
    LOOP
        IF s.kind NOT IN ('post', 'post_est', 'void', 'unknown') OR s.amount_nano < 0 THEN
            RAISE EXCEPTION 'settlement of % is not valid: % %', s.id, s.kind, s.amount_nano;
        END IF;
        SELECT * INTO r FROM reservation WHERE tenant_id = s.tenant_id AND id = s.id;
        settled_id := s.id;
        breach := 0;
        v_has_new_images := s.stored IS NOT NULL
            AND (r.state IN ('posted_est', 'void') OR r.outcome = 'resolved')
            AND NOT EXISTS (
                SELECT 1 FROM image i WHERE i.tenant_id = s.tenant_id AND i.reservation_id = s.id);
        result := settlement_result(r, s.kind, s.amount_nano, v_has_new_images);
        IF s.kind = 'unknown' AND r.state IN ('held', 'unknown') THEN
            -- The sweeper was first; the gateway's report shows that the call was sent.
            UPDATE reservation SET state = 'unknown', outcome = s.outcome,
                calls = coalesce(s.calls, r.calls)
            WHERE tenant_id = s.tenant_id AND id = s.id;
        ELSIF r.state = 'posted' AND v_has_new_images THEN
            -- An operator resolved the call before its late answer: the amount stands, the images
            -- are recorded, and the idempotency key is answered with them from now on.
            UPDATE reservation SET
                served_quality = coalesce(s.quality, r.served_quality),
                served_size = coalesce(s.size, r.served_size),
                calls = coalesce(s.calls, r.calls)
            WHERE tenant_id = s.tenant_id AND id = s.id;
            PERFORM keep_answer(s.tenant_id, s.id, s.answer);
            PERFORM add_images(r, v_now, s.stored);
        END IF;
        IF result <> 'ok' OR s.kind = 'unknown' THEN
            RETURN NEXT;
            CONTINUE;
        END IF;

        v_is_charged := s.kind <> 'void';
        v_released := CASE WHEN r.final_nano IS NULL THEN r.held_nano ELSE 0 END;
        v_change := CASE WHEN v_is_charged THEN s.amount_nano ELSE 0 END
            - coalesce(r.final_nano, 0);
        breach := greatest(v_change - v_released, 0);
        FOREACH v_period IN ARRAY r.periods LOOP
            v_index := array_position(v_periods, v_period);
            v_spent[v_index] := v_spent[v_index] + v_change;
            v_held[v_index] := v_held[v_index] + v_released;
            v_breach[v_index] := v_breach[v_index] + breach;
        END LOOP;
        IF r.house_periods IS NOT NULL THEN
            v_house := v_house || ARRAY(
                SELECT ROW(r.house_shard, u.id, v_change, v_released, breach)::house_change
                FROM unnest(r.house_periods) AS u(id));
        END IF;
        UPDATE reservation SET
            state = CASE s.kind WHEN 'post' THEN 'posted' WHEN 'post_est' THEN 'posted_est'
                ELSE 'void' END,
            final_nano = coalesce(r.final_nano, 0) + v_change,
            outcome = s.outcome, resolved_at = v_now,
            served_quality = coalesce(s.quality, r.served_quality),
            served_size = coalesce(s.size, r.served_size), calls = coalesce(s.calls, r.calls)
        WHERE tenant_id = s.tenant_id AND id = s.id;
        IF NOT v_is_charged THEN
            -- A call that was certainly not charged may be retried under the same key.
            DELETE FROM idempotency_claim
            WHERE tenant_id = s.tenant_id AND reservation_id = s.id;
        ELSIF s.answer IS NOT NULL THEN
            PERFORM keep_answer(s.tenant_id, s.id, s.answer);
        END IF;
        PERFORM add_ledger_line(
            r, v_now, CASE WHEN r.final_nano IS NULL THEN s.kind ELSE 'adjust' END, v_change,
            v_is_charged::int, coalesce(s.images, 0),
            coalesce(s.text_input_tokens, 0), coalesce(s.image_input_tokens, 0),
            coalesce(s.text_output_tokens, 0), coalesce(s.image_output_tokens, 0));
        IF s.stored IS NOT NULL THEN
            PERFORM add_images(r, v_now, s.stored);
        END IF;
        RETURN NEXT;
    END LOOP;

    -- One by one: with a join, the planner may read the whole table for a few rows.
    FOR v_index IN 1 .. coalesce(cardinality(v_periods), 0) LOOP
        UPDATE budget_period SET
            spent_nano = spent_nano + v_spent[v_index],
            held_nano = held_nano - v_held[v_index],
            breach_nano = breach_nano + v_breach[v_index]
        WHERE tenant_id = v_tenants[v_index] AND id = v_periods[v_index]
            AND (v_spent[v_index] <> 0 OR v_held[v_index] <> 0);
    END LOOP;
    PERFORM settle_house_periods(v_house);
END $$;

REVOKE ALL ON FUNCTION settle(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION settle(jsonb) TO image_gateway_app;
