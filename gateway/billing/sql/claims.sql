-- Idempotency: a key is claimed by the reservation that was made with it, in the same commit.
--
-- Claims are rows of their own: most calls have none, and they are deleted days later while the
-- reservation stays.

-- Tell if a key has been claimed by this tenant and user, in this mode, for this operation.
CREATE OR REPLACE FUNCTION is_claimed(
    p_tenant_id uuid, p_user_id uuid, p_livemode boolean, p_operation text, p_key text
) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT 1 FROM idempotency_claim c
        WHERE c.tenant_id = p_tenant_id AND c.user_id IS NOT DISTINCT FROM p_user_id
            AND c.livemode = p_livemode AND c.operation = p_operation AND c.key = p_key
    )
$$;

-- Look up a batch of keys at once, given as JSON objects with a number each; returns the numbers
-- of claimed ones. Takes no locks.
CREATE OR REPLACE FUNCTION claims_made(p_claims jsonb) RETURNS SETOF int
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET enable_seqscan = off AS $$
BEGIN
    RETURN QUERY SELECT c.number
    FROM jsonb_to_recordset(p_claims) AS c(
        number int, tenant_id uuid, user_id uuid, livemode boolean, operation text, key text)
    WHERE is_claimed(c.tenant_id, c.user_id, c.livemode, c.operation, c.key);
END $$;

-- Delete keys, with their hashes and answers, of calls that ended and are older than p_seconds.
--
-- At most p_most of them; returns their number. Skips locked rows.
CREATE OR REPLACE FUNCTION forget_idempotency_keys(p_seconds int, p_most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_count bigint;
BEGIN
    DELETE FROM idempotency_claim
    WHERE (tenant_id, reservation_id) IN (
        SELECT c.tenant_id, c.reservation_id
        FROM idempotency_claim c
        JOIN reservation r ON r.tenant_id = c.tenant_id AND r.id = c.reservation_id
        WHERE c.claimed_at < clock_timestamp() - make_interval(secs => p_seconds)
            AND r.state NOT IN ('held', 'unknown')
        ORDER BY c.claimed_at LIMIT p_most FOR UPDATE OF c SKIP LOCKED
    );
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END $$;

-- Remove the prompts that models revised from a tenant's kept answers, or from one user's of it.
CREATE OR REPLACE FUNCTION erase_answers(p_tenant_id uuid, p_user_id uuid) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    WITH erased AS (
        UPDATE idempotency_claim SET answer = jsonb_set(answer, '{revised_prompts}', '[]')
        WHERE tenant_id = p_tenant_id AND (p_user_id IS NULL OR user_id = p_user_id)
            AND jsonb_array_length(answer -> 'revised_prompts') > 0
        RETURNING 1
    ) SELECT count(*) FROM erased
$$;

REVOKE ALL ON FUNCTION claims_made(jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION forget_idempotency_keys(int, int) FROM PUBLIC;
REVOKE ALL ON FUNCTION erase_answers(uuid, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION claims_made(jsonb) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION forget_idempotency_keys(int, int) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION erase_answers(uuid, uuid) TO image_gateway_app;
