"""Callers without an API key: whoever the operator's identity provider vouches for.

The release before keeps working: it writes a key into every line, and `reserve` takes what it took.
"""

from alembic import op

revision = "2026_11_21_03_identity_provider"
down_revision = "2026_11_21_02_prices_per_image"

ROLE = "image_gateway_app"

# As before, but for how callers are told apart: a missing key or user must not make two alike.
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
            credential text, price_id bigint, amount_nano bigint, ttl_seconds int
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

# A token is checked before it gets here, and its claims name tenant and user: the second lookup that
# crosses tenants, by the tenant's id or name only. Users come into being with their first token.
FIND_BY_CLAIMS = """
CREATE FUNCTION find_caller_by_claims(
    p_tenant_id uuid, p_tenant_name text, p_user_name text, p_new_user_id uuid
)
RETURNS TABLE (
    tenant_id uuid, user_id uuid, tenant_status text, continuity boolean, stores_prompts boolean,
    image_retention_seconds int
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    t tenant;
    v_user_id uuid;
BEGIN
    SELECT * INTO t FROM tenant WHERE id = p_tenant_id;
    IF NOT FOUND THEN
        SELECT * INTO t FROM tenant WHERE name = p_tenant_name;
    END IF;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT u.id INTO v_user_id FROM tenant_user u
    WHERE u.tenant_id = t.id AND u.name = p_user_name;
    IF NOT FOUND AND t.status = 'active' THEN
        INSERT INTO tenant_user (id, tenant_id, name) VALUES (p_new_user_id, t.id, p_user_name)
        ON CONFLICT (tenant_id, name) DO NOTHING;
        SELECT u.id INTO v_user_id FROM tenant_user u
        WHERE u.tenant_id = t.id AND u.name = p_user_name;
    END IF;
    RETURN QUERY SELECT t.id, v_user_id, t.status, t.continuity, t.stores_prompts,
        t.image_retention_seconds;
END $$
"""

SIGNATURE = "find_caller_by_claims(uuid, text, text, uuid)"


def upgrade() -> None:
    """Let lines be without a key, and find callers by tenant and user."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in ("reservation", "ledger"):
        op.execute(f"ALTER TABLE {table} ALTER COLUMN api_key_id DROP NOT NULL")
    op.execute(RESERVE)
    op.execute(FIND_BY_CLAIMS)
    op.execute(f"REVOKE ALL ON FUNCTION {SIGNATURE} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {SIGNATURE} TO {ROLE}")
