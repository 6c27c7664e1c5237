"""An operator resolves what a call did cost: posts the truth, accepts the estimate, or voids.

The release before keeps working: it resolves nothing.
"""

from alembic import op

revision = "2026_11_28_02b_reconciliation"
down_revision = "2026_11_28_02a_estimates"

ROLE = "image_gateway_app"

# As before, and: it keeps which quality and size were served, and tells a call that went out from
# one of which nothing was heard when its time was over.
SETTLE = """
CREATE OR REPLACE FUNCTION settle(p_settlements jsonb)
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
            image_output_tokens bigint, stored jsonb, answer jsonb, quality text, size text
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
            ELSIF r.state = 'unknown' THEN
                -- The sweeper was first. The worker's word says that the call did go out.
                UPDATE reservation SET outcome = s.outcome WHERE id = s.id;
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
            outcome = s.outcome, resolved_at = v_now,
            served_quality = coalesce(s.quality, r.served_quality),
            served_size = coalesce(s.size, r.served_size),
            -- What was surely not charged may be tried again under the same key.
            idempotency_key = CASE WHEN s.kind <> 'void' THEN r.idempotency_key END,
            request_hash = CASE WHEN s.kind <> 'void' THEN r.request_hash END,
            answer = CASE WHEN s.kind <> 'void' AND r.idempotency_key IS NOT NULL
                THEN coalesce(s.answer, r.answer) END
        WHERE id = s.id;
        SELECT max(l.seq) + 1 AS seq, sum(l.requests) AS requests, sum(l.images) AS images,
            sum(l.text_input_tokens) AS text_in, sum(l.image_input_tokens) AS image_in,
            sum(l.text_output_tokens) AS text_out, sum(l.image_output_tokens) AS image_out
        INTO v_before FROM ledger l WHERE l.reservation_id = s.id;
        INSERT INTO ledger (
            reservation_id, seq, at, admitted_at, tenant_id, livemode, api_key_id, user_id,
            requested_model, served_model, kind, amount_nano, requests, images, text_input_tokens,
            image_input_tokens, text_output_tokens, image_output_tokens
        ) VALUES (
            s.id, v_before.seq, v_now, r.admitted_at, r.tenant_id, r.livemode, r.api_key_id,
            r.user_id, r.requested_model, r.served_model, v_kind, v_change,
            (s.kind <> 'void')::int - v_before.requests,
            coalesce(s.images, 0) - v_before.images,
            coalesce(s.text_input_tokens, 0) - v_before.text_in,
            coalesce(s.image_input_tokens, 0) - v_before.image_in,
            coalesce(s.text_output_tokens, 0) - v_before.text_out,
            coalesce(s.image_output_tokens, 0) - v_before.image_out
        );
        IF s.stored IS NOT NULL THEN
            INSERT INTO image (
                id, tenant_id, livemode, user_id, reservation_id, path, media_type, size_bytes,
                width, height, prompt, prompt_hash, created_at, expires_at
            )
            SELECT i.id, r.tenant_id, r.livemode, r.user_id, s.id, i.path, i.media_type,
                i.size_bytes, i.width, i.height, i.prompt, decode(i.prompt_hash, 'hex'),
                v_now, v_now + make_interval(secs => i.ttl_seconds)
            FROM jsonb_to_recordset(s.stored) AS i(
                id text, path text, media_type text, size_bytes bigint, ttl_seconds int,
                width int, height int, prompt text, prompt_hash text
            );
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

# Locks in the order of every other function: the reservation, then its budget periods by id. A call
# whose worker may yet answer is left to it: `under_way`.
RESOLVE = """
CREATE FUNCTION resolve_reservation(p_id uuid, p_kind text, p_amount_nano bigint)
RETURNS TABLE (
    result text, state_before text, nano_before bigint, state_after text, nano_after bigint,
    breach bigint
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
    v_amount bigint;
    v_change bigint;
    v_released bigint;
    v_before record;
    r reservation;
BEGIN
    IF p_kind NOT IN ('post', 'accept', 'void') OR p_amount_nano < 0 THEN
        RAISE EXCEPTION 'resolution of % is not valid: % %', p_id, p_kind, p_amount_nano;
    END IF;
    SELECT * INTO r FROM reservation WHERE id = p_id FOR UPDATE;
    state_before := r.state;
    nano_before := r.final_nano;
    result := CASE
        WHEN r.id IS NULL THEN 'missing'
        WHEN r.state = 'posted' THEN 'resolved'
        WHEN r.state = 'held' AND r.deadline_at > v_now THEN 'under_way'
        WHEN r.state = 'void' AND p_kind <> 'post' THEN 'resolved'
        ELSE 'ok' END;
    IF result <> 'ok' THEN
        RETURN NEXT;
        RETURN;
    END IF;
    PERFORM 1 FROM budget_period WHERE id = ANY (r.periods) ORDER BY id FOR UPDATE;
    v_amount := CASE p_kind WHEN 'void' THEN 0 WHEN 'post' THEN p_amount_nano
        ELSE coalesce(r.final_nano, p_amount_nano) END;
    v_released := CASE WHEN r.final_nano IS NULL THEN r.held_nano ELSE 0 END;
    v_change := v_amount - coalesce(r.final_nano, 0);
    breach := greatest(v_change - v_released, 0);
    state_after := CASE p_kind WHEN 'void' THEN 'void' ELSE 'posted' END;
    nano_after := v_amount;
    UPDATE budget_period SET
        spent_nano = spent_nano + v_change,
        held_nano = held_nano - v_released,
        breach_nano = breach_nano + breach
    WHERE id = ANY (r.periods);
    UPDATE reservation SET
        state = state_after, final_nano = v_amount, outcome = 'resolved', resolved_at = v_now,
        -- A void releases the key, unless it stands for an answer that was delivered.
        idempotency_key = CASE WHEN p_kind <> 'void' OR r.answer IS NOT NULL
            THEN r.idempotency_key END,
        request_hash = CASE WHEN p_kind <> 'void' OR r.answer IS NOT NULL
            THEN r.request_hash END
    WHERE id = p_id;
    SELECT max(l.seq) + 1 AS seq, sum(l.requests) AS requests, sum(l.images) AS images,
        sum(l.text_input_tokens) AS text_in, sum(l.image_input_tokens) AS image_in,
        sum(l.text_output_tokens) AS text_out, sum(l.image_output_tokens) AS image_out
    INTO v_before FROM ledger l WHERE l.reservation_id = p_id;
    -- What is known of images and tokens stays with a cost, and goes with a void.
    INSERT INTO ledger (
        reservation_id, seq, at, admitted_at, tenant_id, livemode, api_key_id, user_id,
        requested_model, served_model, kind, amount_nano, requests, images, text_input_tokens,
        image_input_tokens, text_output_tokens, image_output_tokens
    )
    SELECT p_id, v_before.seq, v_now, r.admitted_at, r.tenant_id, r.livemode, r.api_key_id,
        r.user_id, r.requested_model, r.served_model,
        CASE WHEN r.final_nano IS NOT NULL THEN 'adjust' WHEN p_kind = 'void' THEN 'void'
            ELSE 'post' END,
        v_change, (p_kind <> 'void')::int - v_before.requests, v_before.images * k.gone,
        v_before.text_in * k.gone, v_before.image_in * k.gone, v_before.text_out * k.gone,
        v_before.image_out * k.gone
    FROM (SELECT CASE p_kind WHEN 'void' THEN -1 ELSE 0 END AS gone) k;
    RETURN NEXT;
END $$
"""

SIGNATURE = "resolve_reservation(uuid, text, bigint)"


def upgrade() -> None:
    """Replace the one function, add the other."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statement in (SETTLE, RESOLVE):
        op.execute(statement)
    op.execute(f"REVOKE ALL ON FUNCTION {SIGNATURE} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {SIGNATURE} TO {ROLE}")
