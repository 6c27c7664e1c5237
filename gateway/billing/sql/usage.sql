-- Usage: sums of ledger lines by quarter of an hour and by day, so that reports need not read the
-- ledger.
--
-- The commit that writes a ledger line also queues it in usage_pending. roll_up_usage moves queued
-- lines into the sums, in one commit. A report adds sums and queued lines in one statement: it
-- counts each line once, whatever else commits at the time.

-- What became of a call, as reports name it.
CREATE OR REPLACE FUNCTION usage_status(p_state text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE p_state WHEN 'held' THEN 'in_progress' WHEN 'posted' THEN 'charged'
        WHEN 'posted_est' THEN 'estimated' WHEN 'void' THEN 'failed' ELSE p_state END
$$;

-- The ledger's lines with what reports group by. A line counts at the admission of its call.
-- reserved_at is the same instant as admitted_at, in the reservation: a report that names it too
-- reads the reservations of its period instead of all.
CREATE OR REPLACE VIEW usage_line WITH (security_invoker = true) AS
SELECT l.tenant_id, l.livemode, l.admitted_at, l.reservation_id,
    l.seq, l.api_key_id, l.user_id, l.requested_model, l.served_model, r.provider, r.operation,
    r.credential, r.served_quality, r.served_size, (l.seq = 1)::int AS calls, l.requests, l.images,
    l.text_input_tokens, l.image_input_tokens, l.text_output_tokens, l.image_output_tokens,
    l.amount_nano, usage_status(r.state) AS status, r.admitted_at AS reserved_at
FROM ledger l JOIN reservation r ON r.tenant_id = l.tenant_id AND r.id = l.reservation_id
WHERE l.kind <> 'hold';

-- The same with the types of sums: what a report adds to them.
CREATE OR REPLACE VIEW usage_addend WITH (security_invoker = true) AS
SELECT u.tenant_id, u.livemode, u.admitted_at, u.reservation_id, u.seq, u.api_key_id, u.user_id,
    u.requested_model, u.served_model, u.provider, u.operation, u.credential,
    u.served_quality, u.served_size, u.calls::bigint, u.requests::bigint, u.images::bigint,
    u.text_input_tokens::bigint, u.image_input_tokens::bigint, u.text_output_tokens::bigint,
    u.image_output_tokens::bigint, u.amount_nano::bigint, u.status, u.reserved_at
FROM usage_line u;

-- Those that are in the sums already.
CREATE OR REPLACE VIEW usage_summed WITH (security_invoker = true) AS
SELECT u.* FROM usage_addend u WHERE NOT EXISTS (
    SELECT 1 FROM usage_pending p WHERE p.tenant_id = u.tenant_id
        AND p.reservation_id = u.reservation_id AND p.seq = u.seq
);

GRANT SELECT ON usage_line, usage_addend, usage_summed TO image_gateway_app;

-- The quarter of an hour that contains an instant.
CREATE OR REPLACE FUNCTION usage_slot_of(p_at timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT date_bin('15 minutes', p_at, '2000-01-01 00:00:00+00')
$$;

-- Until the end of the transaction, let no other one change the sums. Reports do not wait.
CREATE OR REPLACE FUNCTION lock_usage() RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(4702111234568)
$$;

-- Move at most p_most queued lines into the sums; returns their number. Locks: lock_usage.
CREATE OR REPLACE FUNCTION roll_up_usage(p_most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_count bigint;
BEGIN
    PERFORM lock_usage();
    WITH taken AS (
        DELETE FROM usage_pending
        WHERE ctid = ANY (ARRAY(
            SELECT q.ctid FROM usage_pending q
            ORDER BY q.tenant_id, q.reservation_id, q.seq LIMIT p_most))
        RETURNING tenant_id, reservation_id, seq
    ), line AS MATERIALIZED (
        SELECT u.*, usage_slot_of(u.admitted_at) AS slot,
            t.time_zone AS zone, (u.admitted_at AT TIME ZONE t.time_zone)::date AS day
        FROM taken q JOIN usage_line u ON u.tenant_id = q.tenant_id
            AND u.reservation_id = q.reservation_id AND u.seq = q.seq
        JOIN tenant t ON t.id = u.tenant_id
    ), slots AS (
        INSERT INTO usage_slot AS s (
            tenant_id, livemode, slot, requested_model, served_model, provider, operation,
            credential, calls, requests, images, text_input_tokens, image_input_tokens,
            text_output_tokens, image_output_tokens, amount_nano
        )
        SELECT
            tenant_id, livemode, slot, requested_model, served_model, provider, operation,
            credential,
            sum(calls), sum(requests), sum(images), sum(text_input_tokens),
            sum(image_input_tokens), sum(text_output_tokens), sum(image_output_tokens),
            sum(amount_nano)
        FROM line GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
        ON CONFLICT (
            tenant_id, livemode, slot, requested_model, served_model, provider, operation,
            credential, is_archived
        ) DO UPDATE SET
            calls = s.calls + excluded.calls, requests = s.requests + excluded.requests,
            images = s.images + excluded.images,
            text_input_tokens = s.text_input_tokens + excluded.text_input_tokens,
            image_input_tokens = s.image_input_tokens + excluded.image_input_tokens,
            text_output_tokens = s.text_output_tokens + excluded.text_output_tokens,
            image_output_tokens = s.image_output_tokens + excluded.image_output_tokens,
            amount_nano = s.amount_nano + excluded.amount_nano
    ), days AS (
        INSERT INTO usage_day AS d (
            tenant_id, livemode, day, requested_model, served_model, provider, operation,
            credential, zone, calls, requests, images, text_input_tokens, image_input_tokens,
            text_output_tokens, image_output_tokens, amount_nano
        )
        SELECT
            tenant_id, livemode, day, requested_model, served_model, provider, operation,
            credential, min(zone),
            sum(calls), sum(requests), sum(images), sum(text_input_tokens),
            sum(image_input_tokens), sum(text_output_tokens), sum(image_output_tokens),
            sum(amount_nano)
        FROM line GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
        ON CONFLICT (
            tenant_id, livemode, day, requested_model, served_model, provider, operation,
            credential, is_archived
        ) DO UPDATE SET
            calls = d.calls + excluded.calls, requests = d.requests + excluded.requests,
            images = d.images + excluded.images,
            text_input_tokens = d.text_input_tokens + excluded.text_input_tokens,
            image_input_tokens = d.image_input_tokens + excluded.image_input_tokens,
            text_output_tokens = d.text_output_tokens + excluded.text_output_tokens,
            image_output_tokens = d.image_output_tokens + excluded.image_output_tokens,
            amount_nano = d.amount_nano + excluded.amount_nano
    ), owner_days AS (
        INSERT INTO usage_owner_day AS o (
            tenant_id, livemode, day, api_key_id, user_id, requested_model, served_model, provider,
            operation, credential, zone, calls, requests, images, text_input_tokens,
            image_input_tokens, text_output_tokens, image_output_tokens, amount_nano
        )
        SELECT
            tenant_id, livemode, day, api_key_id, user_id, requested_model, served_model, provider,
            operation, credential, min(zone),
            sum(calls), sum(requests), sum(images), sum(text_input_tokens),
            sum(image_input_tokens), sum(text_output_tokens), sum(image_output_tokens),
            sum(amount_nano)
        FROM line GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
        ON CONFLICT (
            tenant_id, livemode, day, api_key_id, user_id, requested_model, served_model, provider,
            operation, credential, is_archived
        ) DO UPDATE SET
            calls = o.calls + excluded.calls, requests = o.requests + excluded.requests,
            images = o.images + excluded.images,
            text_input_tokens = o.text_input_tokens + excluded.text_input_tokens,
            image_input_tokens = o.image_input_tokens + excluded.image_input_tokens,
            text_output_tokens = o.text_output_tokens + excluded.text_output_tokens,
            image_output_tokens = o.image_output_tokens + excluded.image_output_tokens,
            amount_nano = o.amount_nano + excluded.amount_nano
    )
    SELECT count(*) INTO v_count FROM taken;
    RETURN v_count;
END $$;

-- Make a tenant's days anew, in its present time zone. Days by key and user of archived lines stay
-- those of the time zone in which they were archived. Locks: lock_usage.
CREATE OR REPLACE FUNCTION rebuild_usage_days(p_tenant_id uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_zone text;
BEGIN
    PERFORM lock_usage();
    DELETE FROM usage_stale WHERE tenant_id = p_tenant_id;
    SELECT time_zone INTO v_zone FROM tenant WHERE id = p_tenant_id;
    DELETE FROM usage_day WHERE tenant_id = p_tenant_id;
    INSERT INTO usage_day (
        tenant_id, livemode, day, requested_model, served_model, provider, operation, credential,
        is_archived, zone, calls, requests, images, text_input_tokens, image_input_tokens,
        text_output_tokens, image_output_tokens, amount_nano
    )
    SELECT s.tenant_id, s.livemode, (s.slot AT TIME ZONE v_zone)::date,
        s.requested_model, s.served_model, s.provider, s.operation, s.credential, s.is_archived,
        v_zone, sum(s.calls), sum(s.requests), sum(s.images), sum(s.text_input_tokens),
        sum(s.image_input_tokens), sum(s.text_output_tokens), sum(s.image_output_tokens),
        sum(s.amount_nano)
    FROM usage_slot s WHERE s.tenant_id = p_tenant_id GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9;
    DELETE FROM usage_owner_day WHERE tenant_id = p_tenant_id AND NOT is_archived;
    UPDATE usage_owner_day SET zone = v_zone WHERE tenant_id = p_tenant_id;
    -- Lines and their place in the queue are written together: one statement sees both or neither.
    INSERT INTO usage_owner_day (
        tenant_id, livemode, day, api_key_id, user_id, requested_model, served_model, provider,
        operation, credential, zone, calls, requests, images, text_input_tokens, image_input_tokens,
        text_output_tokens, image_output_tokens, amount_nano
    )
    SELECT u.tenant_id, u.livemode, (u.admitted_at AT TIME ZONE v_zone)::date, u.api_key_id,
        u.user_id, u.requested_model, u.served_model, u.provider, u.operation, u.credential,
        v_zone, sum(u.calls), sum(u.requests), sum(u.images), sum(u.text_input_tokens),
        sum(u.image_input_tokens), sum(u.text_output_tokens), sum(u.image_output_tokens),
        sum(u.amount_nano)
    FROM usage_summed u WHERE u.tenant_id = p_tenant_id
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10;
END $$;

-- Throw a tenant's sums away, except those of archived lines, and queue its ledger lines again.
-- Reports are right meanwhile, though slow for that tenant until roll_up_usage has done its work.
-- Locks: lock_usage.
CREATE OR REPLACE FUNCTION recompute_usage(p_tenant_id uuid) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_count bigint;
BEGIN
    PERFORM lock_usage();
    -- Archived days may still be those of a former time zone.
    DELETE FROM usage_stale WHERE tenant_id = p_tenant_id
        AND NOT EXISTS (SELECT 1 FROM archived_usage a WHERE a.tenant_id = p_tenant_id);
    DELETE FROM usage_slot WHERE tenant_id = p_tenant_id AND NOT is_archived;
    DELETE FROM usage_day WHERE tenant_id = p_tenant_id AND NOT is_archived;
    DELETE FROM usage_owner_day WHERE tenant_id = p_tenant_id AND NOT is_archived;
    INSERT INTO usage_pending (tenant_id, reservation_id, seq)
    SELECT l.tenant_id, l.reservation_id, l.seq FROM ledger l
    WHERE l.tenant_id = p_tenant_id AND l.kind <> 'hold'
    ON CONFLICT DO NOTHING;
    SELECT count(*) INTO v_count FROM usage_pending WHERE tenant_id = p_tenant_id;
    RETURN v_count;
END $$;

-- A tenant that moves to another time zone has other days.
CREATE OR REPLACE FUNCTION note_stale_usage() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO usage_stale (tenant_id) VALUES (NEW.id) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER tenant_usage_stale AFTER UPDATE OF time_zone ON tenant
    FOR EACH ROW WHEN (NEW.time_zone <> OLD.time_zone) EXECUTE FUNCTION note_stale_usage();

REVOKE ALL ON FUNCTION lock_usage() FROM PUBLIC;
REVOKE ALL ON FUNCTION roll_up_usage(int) FROM PUBLIC;
REVOKE ALL ON FUNCTION rebuild_usage_days(uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION recompute_usage(uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION note_stale_usage() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION roll_up_usage(int) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION rebuild_usage_days(uuid) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION recompute_usage(uuid) TO image_gateway_app;
