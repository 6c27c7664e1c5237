"""Hosting: what tenants choose, what is known of an image, and which sweep is due when.

The release before keeps working: `settle` takes what it took, and `find_api_key` stays beside
`find_caller`, because prepared statements of running processes do not survive a changed result.
"""

from alembic import op

revision = "2026_11_21_01_hosting"
down_revision = "2026_11_20_03_access"

ROLE = "image_gateway_app"

TENANT = """
ALTER TABLE tenant
    ADD COLUMN continuity BOOLEAN DEFAULT true NOT NULL,
    ADD COLUMN stores_prompts BOOLEAN DEFAULT false NOT NULL,
    ADD COLUMN image_retention_seconds INTEGER,
    ADD COLUMN max_image_bytes BIGINT,
    ADD CONSTRAINT tenant_image_retention CHECK (image_retention_seconds BETWEEN 60 AND 315360000),
    ADD CONSTRAINT tenant_max_image_bytes CHECK (max_image_bytes >= 0)
"""

IMAGE = """
ALTER TABLE image
    ADD COLUMN user_id UUID,
    ADD COLUMN width INTEGER,
    ADD COLUMN height INTEGER,
    ADD COLUMN prompt TEXT,
    ADD COLUMN prompt_hash BYTEA
"""

OWN_USERS = """
UPDATE image i SET user_id = r.user_id FROM reservation r
WHERE r.id = i.reservation_id AND r.user_id IS NOT NULL AND i.deleted_at IS NULL
"""

# Rows of deleted images stay, and soon outnumber the others: the history must not walk over them.
INDEXES = """
CREATE INDEX image_history ON image (tenant_id, livemode, created_at, id)
    WHERE deleted_at IS NULL;
CREATE INDEX image_user_history ON image (tenant_id, user_id, livemode, created_at, id)
    WHERE deleted_at IS NULL AND user_id IS NOT NULL;
DROP INDEX image_tenant
"""

SWEEP = """
CREATE TABLE sweep (
    name TEXT NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    store_mark TEXT,
    store_since TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (name)
)
"""

FIND_CALLER = """
CREATE FUNCTION find_caller(p_digest bytea)
RETURNS TABLE (
    id uuid, tenant_id uuid, user_id uuid, livemode boolean, scopes text[], models text[],
    expires_at timestamptz, revoked_at timestamptz, tenant_status text, continuity boolean,
    stores_prompts boolean, image_retention_seconds int
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT k.root_id, k.tenant_id, k.user_id, k.livemode, k.scopes, k.models, k.expires_at,
        k.revoked_at, t.status, t.continuity, t.stores_prompts, t.image_retention_seconds
    FROM api_key k JOIN tenant t ON t.id = k.tenant_id WHERE k.digest = p_digest
$$
"""

GRANTS = {
    "tenant": "UPDATE (continuity, stores_prompts, image_retention_seconds, max_image_bytes)",
    "image": "UPDATE (deleted_at, expires_at, prompt, prompt_hash)",
    "sweep": "SELECT, UPDATE (due_at, store_mark, store_since)",
}

# As before, but for what is written down of each stored image.
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
    """Add columns, indexes and the table of sweeps; replace the functions."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statement in (TENANT, IMAGE, OWN_USERS, *INDEXES.split(";"), SWEEP, SETTLE, FIND_CALLER):
        op.execute(statement)
    op.execute("INSERT INTO sweep (name) VALUES ('byte_caps'), ('orphans')")
    for table, rights in GRANTS.items():
        op.execute(f"GRANT {rights} ON {table} TO {ROLE}")
    op.execute("REVOKE ALL ON FUNCTION find_caller(bytea) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION find_caller(bytea) TO {ROLE}")
