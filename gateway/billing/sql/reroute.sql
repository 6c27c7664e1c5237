-- Rerouting: another model's call takes the place of one that was surely not charged.

-- Give a reservation that is still held to another model, whose cost it covers, with the terms by
-- which that model's call is estimated. False if it is not held any more: the call must not be made.
CREATE OR REPLACE FUNCTION reroute_reservation(
    p_tenant_id uuid, p_id uuid, p_served_model text, p_provider text, p_credential text,
    p_price_id bigint, p_ttl_seconds int, p_terms jsonb
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET enable_seqscan = off AS $$
BEGIN
    UPDATE reservation SET
        served_model = p_served_model, provider = p_provider, credential = p_credential,
        price_id = p_price_id, terms = p_terms,
        deadline_at = clock_timestamp() + make_interval(secs => p_ttl_seconds)
    WHERE tenant_id = p_tenant_id AND id = p_id AND state = 'held';
    RETURN FOUND;
END $$;

REVOKE ALL ON FUNCTION reroute_reservation(uuid, uuid, text, text, text, bigint, int, jsonb)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reroute_reservation(uuid, uuid, text, text, text, bigint, int, jsonb)
    TO image_gateway_app;
