"""What an open call can be estimated by, and the moment of admission on every ledger line.

The release before keeps working: it sends no terms and its lines have their moment all the same.
"""

from alembic import op

revision = "2026_11_28_02a_estimates"
down_revision = "2026_11_28_05_names_and_erasure"

# `terms`: what the request asked for, as far as its cost depends on it. `served_*`: what the
# provider chose where the request left it open.
RESERVATION = """
ALTER TABLE reservation
    ADD COLUMN terms jsonb,
    ADD COLUMN served_quality text,
    ADD COLUMN served_size text,
    ADD CONSTRAINT reservation_served
        CHECK (length(served_quality) <= 20 AND length(served_size) <= 20)
"""

# The last thousand settled calls of one model are found without reading any others.
SERVED = """
CREATE INDEX reservation_served ON reservation (served_model, operation, livemode, id)
    INCLUDE (served_quality, served_size)
    WHERE state = 'posted' AND served_quality IS NOT NULL AND served_size IS NOT NULL
"""

# Reports follow the moment of admission, as budgets do. Lines of earlier releases have none and
# can get none, since lines never change: they keep the moment of their own posting.
LEDGER = """
ALTER TABLE ledger ADD COLUMN admitted_at timestamptz
"""
REPORT = (
    "DROP INDEX ledger_report",
    """
CREATE INDEX ledger_report ON ledger (tenant_id, livemode, coalesce(admitted_at, at))
    WHERE kind <> 'hold'
""",
)

# As before, and: it keeps the terms of the request, and the hold line has its moment of admission.
RESERVE = """
CREATE OR REPLACE FUNCTION reserve(p_requests jsonb, p_instance uuid, p_whole boolean)
RETURNS TABLE (
    request_id uuid, outcome text, budget bigint, owner text, window_name text,
    budget_limit bigint, available bigint, resets_at timestamptz
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
    v_shards CONSTANT int := 8;
    v_shard int := CASE WHEN p_whole THEN NULL
        ELSE ('x' || right(p_instance::text, 7))::bit(28)::int % v_shards END;
    v_budgets bigint[];
    v_found bigint[];
    v_budget bigint;
    v_locked bigint[];
    v_of_budget bigint[];
    v_limits bigint[];
    v_available bigint[];
    v_held bigint[];
    v_is_house boolean[];
    v_is_soft boolean[];
    v_is_exceeded boolean[];
    v_divisions int[];
    v_exceeded int[] := '{}';
    v_positions int[];
    v_position int;
    v_short int;
    v_room bigint;
    v_caller text := '';
    v_name text;
    b budget;
    p budget_period;
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
        v_found := v_found || current_periods(v_budget, v_now, v_shard);
    END LOOP;
    SELECT array_agg(l.id), array_agg(l.budget_id), array_agg(l.limit_nano), array_agg(
            CASE WHEN l.tenant_id IS NOT NULL OR p_whole THEN l.limit_nano - l.used_nano
                WHEN l.allotted_of_nano = l.limit_nano AND l.allotted_division = l.division
                    THEN l.allotted_nano - l.used_nano END),
        array_agg(0::bigint), array_agg(l.tenant_id IS NULL), array_agg(l.is_soft),
        array_agg(coalesce(l.exceeded_of_nano >= l.limit_nano, false)), array_agg(l.division)
    INTO v_locked, v_of_budget, v_limits, v_available, v_held, v_is_house, v_is_soft,
        v_is_exceeded, v_divisions
    FROM (
        SELECT bp.id, bp.budget_id, bp.tenant_id, bp.spent_nano + bp.held_nano AS used_nano,
            bp.allotted_nano, bp.allotted_of_nano, bp.allotted_division,
            (SELECT o.division FROM budget o WHERE o.id = bp.budget_id) AS division,
            bp.exceeded_of_nano,
            (SELECT limit_at(o, v_now) FROM budget o WHERE o.id = bp.budget_id) AS limit_nano,
            (SELECT o.enforcement = 'soft' FROM budget o WHERE o.id = bp.budget_id) AS is_soft
        FROM budget_period bp WHERE bp.id = ANY (v_found) ORDER BY bp.id FOR UPDATE
    ) l;
    -- The first shard of each stands for them all.
    IF p_whole THEN
        FOR v_position IN 1 .. coalesce(cardinality(v_locked), 0) LOOP
            v_short := array_position(v_of_budget, v_of_budget[v_position]);
            IF v_short < v_position THEN
                v_available[v_short] :=
                    v_available[v_short] + v_available[v_position] - v_limits[v_position];
            END IF;
        END LOOP;
    END IF;

    FOR q IN
        SELECT r.* FROM jsonb_to_recordset(p_requests) AS r(
            id uuid, tenant_id uuid, api_key_id uuid, user_id uuid, livemode boolean,
            operation text, requested_model text, served_model text, provider text,
            credential text, price_id bigint, amount_nano bigint, ttl_seconds int,
            idempotency_key text, request_hash text, terms jsonb
        )
    LOOP
        request_id := q.id;
        -- Requests of one caller mostly follow one another: his budgets are looked up once.
        -- Any of key and user may be missing, so each has its place, and the tenant is named.
        v_name := concat_ws(' ', q.tenant_id, coalesce(q.api_key_id::text, '-'),
            coalesce(q.user_id::text, '-'), q.livemode, q.credential);
        IF v_caller <> v_name THEN
            v_caller := v_name;
            v_positions := ARRAY(
                SELECT array_position(v_of_budget, u.id) FROM unnest(applying_budgets(
                    q.tenant_id, q.api_key_id, q.user_id, q.livemode, q.credential)) AS u(id)
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
            -- A shard that has no part of the limit that is in force has nothing available.
            IF NOT v_is_soft[v_position]
                AND coalesce(v_available[v_position], -1) < q.amount_nano
            THEN
                v_short := v_position;
                EXIT;
            END IF;
        END LOOP;
        IF v_short IS NOT NULL AND v_is_house[v_short] AND NOT p_whole THEN
            SELECT 'whole', NULL, NULL, NULL, NULL, NULL, NULL
            INTO outcome, budget, owner, window_name, budget_limit, available, resets_at;
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF v_short IS NOT NULL THEN
            IF NOT v_is_exceeded[v_short] THEN
                v_is_exceeded[v_short] := true;
                v_exceeded := v_exceeded || v_short;
            END IF;
            SELECT 'budget_exceeded', b.id,
                CASE WHEN b.tenant_id IS NULL THEN 'house' WHEN b.api_key_id IS NOT NULL THEN 'key'
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
            deadline_at, idempotency_key, request_hash, terms
        ) VALUES (
            q.id, q.tenant_id, q.livemode, q.api_key_id, q.user_id,
            ARRAY(SELECT v_locked[u.position] FROM unnest(v_positions) AS u(position) ORDER BY 1),
            q.operation, q.requested_model, q.served_model, q.provider, q.credential, q.price_id,
            q.amount_nano, p_instance, v_now, v_now + make_interval(secs => q.ttl_seconds),
            q.idempotency_key, decode(q.request_hash, 'hex'), q.terms
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
            reservation_id, seq, at, admitted_at, tenant_id, livemode, api_key_id, user_id,
            requested_model, served_model, kind, amount_nano, requests, images, text_input_tokens,
            image_input_tokens, text_output_tokens, image_output_tokens
        ) VALUES (
            q.id, 0, v_now, v_now, q.tenant_id, q.livemode, q.api_key_id, q.user_id,
            q.requested_model, q.served_model, 'hold', q.amount_nano, 0, 0, 0, 0, 0, 0
        );
        SELECT 'held', NULL, NULL, NULL, NULL, NULL, NULL
        INTO outcome, budget, owner, window_name, budget_limit, available, resets_at;
        RETURN NEXT;
    END LOOP;

    FOR v_position IN 1 .. coalesce(cardinality(v_locked), 0) LOOP
        UPDATE budget_period SET
            held_nano = held_nano + v_held[v_position],
            soft_nano = soft_nano
                + CASE WHEN v_is_soft[v_position] THEN v_held[v_position] ELSE 0 END,
            ceiling_nano = greatest(ceiling_nano, v_limits[v_position])
        WHERE id = v_locked[v_position] AND v_held[v_position] > 0;
    END LOOP;
    FOR v_position IN 1 .. coalesce(cardinality(v_locked), 0) LOOP
        CONTINUE WHEN NOT p_whole OR NOT v_is_house[v_position] OR v_held[v_position] = 0;
        v_room := v_available[v_position];
        UPDATE budget_period bp SET
            allotted_nano = CASE WHEN v_room >= 0 THEN bp.spent_nano + bp.held_nano
                + v_room / v_shards
                + CASE WHEN bp.id = v_locked[v_position] THEN v_room % v_shards ELSE 0 END END,
            -- While more than the limit is used, no shard by itself can tell what is left.
            allotted_of_nano = CASE WHEN v_room >= 0 THEN v_limits[v_position] END,
            allotted_division = v_divisions[v_position]
        WHERE bp.id = ANY (v_locked) AND bp.budget_id = v_of_budget[v_position];
    END LOOP;
    FOREACH v_position IN ARRAY v_exceeded LOOP
        UPDATE budget_period SET exceeded_of_nano = v_limits[v_position]
        WHERE id = v_locked[v_position];
        SELECT * INTO b FROM budget WHERE id = v_of_budget[v_position];
        SELECT * INTO p FROM budget_period WHERE id = v_locked[v_position];
        PERFORM note_budget_event('budget.exceeded', b, p,
            (SELECT sum(x.spent_nano)::bigint FROM budget_period x
             WHERE x.budget_id = p.budget_id AND x.period_start = p.period_start),
            (SELECT sum(x.held_nano)::bigint FROM budget_period x
             WHERE x.budget_id = p.budget_id AND x.period_start = p.period_start),
            v_limits[v_position], NULL);
    END LOOP;
END $$
"""


def upgrade() -> None:
    """Add the columns and replace the function and the index."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statement in (RESERVATION, SERVED, LEDGER, *REPORT, RESERVE):
        op.execute(statement)
