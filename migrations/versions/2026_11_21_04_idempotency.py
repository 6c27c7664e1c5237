"""Idempotency: a key claims a purchase in the commit that holds its money.

The release before keeps working: it claims no keys and records no answers.
"""

from alembic import op

revision = "2026_11_21_04_idempotency"
down_revision = "2026_11_21_03_identity_provider"

ROLE = "image_gateway_app"

RESERVATION = """
ALTER TABLE reservation
    ADD COLUMN idempotency_key text,
    ADD COLUMN request_hash bytea,
    ADD COLUMN answer jsonb,
    ADD CONSTRAINT reservation_idempotency_key CHECK (length(idempotency_key) BETWEEN 1 AND 255)
"""

CLAIMS = """
CREATE UNIQUE INDEX reservation_claim
    ON reservation (tenant_id, idempotency_key, operation, livemode, user_id)
    NULLS NOT DISTINCT WHERE idempotency_key IS NOT NULL
"""

CLAIMS_BY_AGE = """
CREATE INDEX reservation_claimed_at ON reservation (admitted_at) WHERE idempotency_key IS NOT NULL
"""

# Keys live for a day; one whose call is still open stays until that is resolved.
FORGET = """
CREATE FUNCTION forget_idempotency_keys(p_seconds int, p_most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_count bigint;
BEGIN
    UPDATE reservation SET idempotency_key = NULL, request_hash = NULL, answer = NULL
    WHERE id IN (
        SELECT r.id FROM reservation r
        WHERE r.idempotency_key IS NOT NULL AND r.state NOT IN ('held', 'unknown')
            AND r.admitted_at < clock_timestamp() - make_interval(secs => p_seconds)
        ORDER BY r.admitted_at LIMIT p_most FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END $$
"""

# As before, but for two things. How callers are told apart: a missing API key or user must not make
# two alike. And a key for idempotency is claimed together with the money: before the budgets are
# looked at where it was claimed earlier, and with the row itself where two come at once. A batch
# brings its keys in one order (see `Reservations`), so that two batches never wait for each other.
RESERVE = """
CREATE OR REPLACE FUNCTION reserve(p_requests jsonb, p_instance uuid)
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
    v_name text;
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
            credential text, price_id bigint, amount_nano bigint, ttl_seconds int,
            idempotency_key text, request_hash text
        )
    LOOP
        request_id := q.id;
        -- Requests of one caller mostly follow one another: his budgets are looked up once.
        -- Any of key and user may be missing, so each has its place, and the tenant is named.
        v_name := concat_ws(' ', q.tenant_id, coalesce(q.api_key_id::text, '-'),
            coalesce(q.user_id::text, '-'), q.livemode);
        IF v_caller <> v_name THEN
            v_caller := v_name;
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
        -- Whoever sends a key again gets what came of it, also where his budget is spent by now.
        IF q.idempotency_key IS NOT NULL AND EXISTS (
            SELECT 1 FROM reservation o
            WHERE o.tenant_id = q.tenant_id AND o.user_id IS NOT DISTINCT FROM q.user_id
                AND o.livemode = q.livemode AND o.operation = q.operation
                AND o.idempotency_key = q.idempotency_key
        ) THEN
            SELECT 'claimed', NULL, NULL, NULL, NULL, NULL, NULL
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
        INSERT INTO reservation (
            id, tenant_id, livemode, api_key_id, user_id, periods, operation, requested_model,
            served_model, provider, credential, price_id, held_nano, instance, admitted_at,
            deadline_at, idempotency_key, request_hash
        ) VALUES (
            q.id, q.tenant_id, q.livemode, q.api_key_id, q.user_id,
            ARRAY(SELECT v_locked[u.position] FROM unnest(v_positions) AS u(position) ORDER BY 1),
            q.operation, q.requested_model, q.served_model, q.provider, q.credential, q.price_id,
            q.amount_nano, p_instance, v_now, v_now + make_interval(secs => q.ttl_seconds),
            q.idempotency_key, decode(q.request_hash, 'hex')
        )
        -- Waits for another worker that is claiming the same key at this moment.
        ON CONFLICT (tenant_id, user_id, livemode, operation, idempotency_key)
            WHERE idempotency_key IS NOT NULL DO NOTHING;
        IF NOT FOUND THEN
            SELECT 'claimed', NULL, NULL, NULL, NULL, NULL, NULL
            INTO outcome, budget, owner, window_name, budget_limit, available, resets_at;
            RETURN NEXT;
            CONTINUE;
        END IF;
        FOREACH v_position IN ARRAY v_positions LOOP
            v_available[v_position] := v_available[v_position] - q.amount_nano;
            v_held[v_position] := v_held[v_position] + q.amount_nano;
        END LOOP;
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

# As before, but that it keeps what a repeated request is to be answered with, and all that is known of
# each stored image.
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
            image_output_tokens bigint, stored jsonb, answer jsonb
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
            outcome = s.outcome, resolved_at = v_now,
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


def upgrade() -> None:
    """Add what a claim needs, and replace the functions."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statement in (RESERVATION, CLAIMS, CLAIMS_BY_AGE, FORGET, RESERVE, SETTLE):
        op.execute(statement)
    op.execute("REVOKE ALL ON FUNCTION forget_idempotency_keys(int, int) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION forget_idempotency_keys(int, int) TO {ROLE}")
