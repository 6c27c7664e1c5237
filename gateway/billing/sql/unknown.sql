-- Calls of unknown outcome: past their deadline, or resolved by an operator.

-- Mark held reservations past their deadline as unknown, at most p_limit; returns their number.
--
-- Skips locked rows: they are being settled.
CREATE OR REPLACE FUNCTION expire_reservations(p_limit int) RETURNS int
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET enable_seqscan = off AS $$
    WITH late AS (
        SELECT tenant_id, id FROM reservation
        WHERE state = 'held' AND deadline_at < clock_timestamp()
        ORDER BY deadline_at LIMIT p_limit FOR UPDATE SKIP LOCKED
    ), marked AS (
        UPDATE reservation SET state = 'unknown', outcome = 'expired'
        WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM late) RETURNING 1
    )
    SELECT count(*)::int FROM marked
$$;

-- Resolve one call of unknown or estimated cost by an operator's decision: p_kind is `post` (with
-- the actual cost in p_amount_nano), `accept` (the estimate) or `void`.
--
-- `result` is ok; missing; resolved, if nothing is left to resolve; under_way, before the deadline;
-- or archived, if its lines are. `breach`: nano-dollars beyond the reservation.
-- Locks: the reservation, then the periods of budgets, as in settle.
CREATE OR REPLACE FUNCTION resolve_reservation(
    p_tenant_id uuid, p_id uuid, p_kind text, p_amount_nano bigint
) RETURNS TABLE (
    result text, state_before text, nano_before bigint, state_after text, nano_after bigint,
    breach bigint
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
    v_is_void boolean := p_kind = 'void';
    v_change bigint;
    v_released bigint;
    v_none int := CASE WHEN p_kind = 'void' THEN 0 END;
    r reservation;
BEGIN
    IF p_kind NOT IN ('post', 'accept', 'void') OR p_amount_nano < 0 THEN
        RAISE EXCEPTION 'resolution of % is not valid: % %', p_id, p_kind, p_amount_nano;
    END IF;
    SELECT * INTO r FROM reservation WHERE tenant_id = p_tenant_id AND id = p_id FOR UPDATE;
    state_before := r.state;
    nano_before := r.final_nano;
    result := CASE
        WHEN r.id IS NULL THEN 'missing'
        WHEN r.state = 'posted' THEN 'resolved'
        WHEN r.state = 'held' AND r.deadline_at > v_now THEN 'under_way'
        WHEN r.state = 'void' AND p_kind <> 'post' THEN 'resolved'
        WHEN r.final_nano IS NOT NULL AND is_archived(r) THEN 'archived'
        ELSE 'ok' END;
    IF result <> 'ok' THEN
        RETURN NEXT;
        RETURN;
    END IF;
    PERFORM 1 FROM budget_period WHERE tenant_id = p_tenant_id AND id = ANY (r.periods)
    ORDER BY id FOR UPDATE;
    state_after := CASE WHEN v_is_void THEN 'void' ELSE 'posted' END;
    nano_after := CASE p_kind WHEN 'void' THEN 0 WHEN 'post' THEN p_amount_nano
        ELSE coalesce(r.final_nano, p_amount_nano) END;
    v_released := CASE WHEN r.final_nano IS NULL THEN r.held_nano ELSE 0 END;
    v_change := nano_after - coalesce(r.final_nano, 0);
    breach := greatest(v_change - v_released, 0);
    UPDATE budget_period SET
        spent_nano = spent_nano + v_change,
        held_nano = held_nano - v_released,
        breach_nano = breach_nano + breach
    WHERE tenant_id = p_tenant_id AND id = ANY (r.periods);
    PERFORM settle_house_periods(ARRAY(
        SELECT ROW(r.house_shard, u.id, v_change, v_released, breach)::house_change
        FROM unnest(r.house_periods) AS u(id)));
    UPDATE reservation SET
        state = state_after, final_nano = nano_after, outcome = 'resolved', resolved_at = v_now
    WHERE tenant_id = p_tenant_id AND id = p_id;
    -- A void releases the key, unless the key belongs to a delivered answer.
    DELETE FROM idempotency_claim
    WHERE v_is_void AND tenant_id = p_tenant_id AND reservation_id = p_id AND answer IS NULL;
    -- Known images and tokens are kept with a cost, and cleared by a void.
    PERFORM add_ledger_line(
        r, v_now, CASE WHEN r.final_nano IS NOT NULL THEN 'adjust' WHEN v_is_void THEN 'void'
            ELSE 'post' END,
        v_change, (NOT v_is_void)::int, v_none, v_none, v_none, v_none, v_none);
    RETURN NEXT;
END $$;

REVOKE ALL ON FUNCTION expire_reservations(int) FROM PUBLIC;
REVOKE ALL ON FUNCTION resolve_reservation(uuid, uuid, text, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION expire_reservations(int) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION resolve_reservation(uuid, uuid, text, bigint) TO image_gateway_app;
