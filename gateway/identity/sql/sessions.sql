-- Look-ups of the console's sessions and sign-in links. They run before the tenant is known, so that
-- they cross tenants. Each takes the digest of a secret, never a wildcard.

-- The reason for which a session may not be used any more; NULL while it may.
--
-- Read from the rows that it rests on, so that a revoked key, a disabled person or tenant and a
-- changed role end it at the next request, at every gateway.
CREATE OR REPLACE FUNCTION console_session_end(s console_session) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
BEGIN
    IF s.ended_at IS NOT NULL THEN
        RETURN s.end_reason;
    ELSIF v_now >= s.absolute_until THEN
        RETURN 'too_old';
    ELSIF v_now >= s.idle_until THEN
        RETURN 'idle';
    ELSIF s.person_id IS NOT NULL AND NOT EXISTS (
        SELECT FROM console_person p WHERE p.id = s.person_id AND p.status = 'active'
            AND p.role = s.role AND p.tenant_id IS NOT DISTINCT FROM s.tenant_id
    ) THEN
        RETURN 'person_changed';
    ELSIF s.operator_key_id IS NOT NULL AND NOT EXISTS (
        SELECT FROM operator_key k WHERE k.id = s.operator_key_id AND k.revoked_at IS NULL
            AND (k.expires_at IS NULL OR k.expires_at > v_now)
    ) THEN
        RETURN 'key_ended';
    ELSIF s.api_key_id IS NOT NULL AND NOT EXISTS (
        SELECT FROM api_key k WHERE k.tenant_id = s.tenant_id AND k.id = s.api_key_id
            AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > v_now)
    ) THEN
        RETURN 'key_ended';
    ELSIF s.tenant_id IS NOT NULL AND NOT EXISTS (
        SELECT FROM tenant t
        LEFT JOIN tenant_user u ON u.tenant_id = t.id AND u.id = s.user_id
        WHERE t.id = s.tenant_id AND account_status(t.status, u.status) = 'active'
    ) THEN
        RETURN 'tenant_disabled';
    END IF;
    RETURN NULL;
END $$;

-- The session with this digest, with what its pages show of it. `end_reason` is NULL while it lasts.
--
-- Notes the time if `p_touches`, at most once a minute, or four times in a short idle time: a page
-- costs no write otherwise. Finds ended sessions too, so that their owner can be told why.
DROP FUNCTION IF EXISTS find_console_session(bytea);
CREATE OR REPLACE FUNCTION find_console_session(p_digest bytea, p_touches boolean) RETURNS TABLE (
    id uuid, name text, role text, via text, tenant_id uuid, user_id uuid, person_id uuid,
    api_key_id uuid, key_root_id uuid, key_scopes text[], key_models text[], key_livemode boolean,
    operator_key_id uuid, visited_tenant_id uuid, created_at timestamptz,
    idle_until timestamptz, absolute_until timestamptz, tenant_name text, tenant_zone text,
    end_reason text
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    s console_session;
    v_reason text;
    v_now timestamptz := clock_timestamp();
BEGIN
    SELECT * INTO s FROM console_session WHERE digest = p_digest;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    v_reason := console_session_end(s);
    IF v_reason IS NOT NULL AND s.ended_at IS NULL THEN
        UPDATE console_session SET ended_at = v_now, end_reason = v_reason, provider_token = NULL
        WHERE id = s.id AND ended_at IS NULL;
    ELSIF v_reason IS NULL AND p_touches
        AND s.last_seen_at < v_now - make_interval(secs => least(60, s.idle_seconds / 4.0))
    THEN
        UPDATE console_session SET last_seen_at = v_now,
            idle_until = least(absolute_until, v_now + make_interval(secs => idle_seconds))
        WHERE id = s.id AND ended_at IS NULL
        RETURNING idle_until INTO s.idle_until;
    END IF;
    -- An operator in the portal of a tenant that was deleted is no longer in it.
    IF s.visited_tenant_id IS NOT NULL AND EXISTS (
        SELECT FROM tenant t WHERE t.id = s.visited_tenant_id AND t.status = 'deleted'
    ) THEN
        s.visited_tenant_id := NULL;
    END IF;
    RETURN QUERY
    SELECT s.id, s.name, s.role, s.via, s.tenant_id, s.user_id, s.person_id, s.api_key_id,
        k.root_id, k.scopes, k.models, k.livemode, s.operator_key_id, s.visited_tenant_id,
        s.created_at, s.idle_until, s.absolute_until, t.name, t.time_zone, v_reason
    FROM (SELECT) once
    LEFT JOIN api_key k ON k.tenant_id = s.tenant_id AND k.id = s.api_key_id
    LEFT JOIN tenant t ON t.id = coalesce(s.visited_tenant_id, s.tenant_id);
END $$;

-- The tenant's settings and the caller's limits in one mode, for a person who acts in the portal.
CREATE OR REPLACE FUNCTION console_caller(
    p_tenant_id uuid, p_key_root_id uuid, p_user_id uuid, p_livemode boolean
) RETURNS TABLE (
    tenant_status text, continuity boolean, fallback boolean, stores_prompts boolean,
    image_retention_seconds int, limits text[]
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT account_status(t.status, u.status), t.continuity, t.fallback, t.stores_prompts,
        t.image_retention_seconds, limits_of(t.id, p_key_root_id, p_user_id, p_livemode)
    FROM tenant t LEFT JOIN tenant_user u ON u.tenant_id = t.id AND u.id = p_user_id
    WHERE t.id = p_tenant_id
$$;

-- Use a sign-in link: true for the first request that has it, within its time.
CREATE OR REPLACE FUNCTION use_console_link(p_digest bytea) RETURNS TABLE (made_by text)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    UPDATE console_link SET used_at = clock_timestamp()
    WHERE digest = p_digest AND used_at IS NULL AND expires_at > clock_timestamp()
    RETURNING console_link.made_by
$$;

-- Delete what is of no use: old sessions, links, sign-ins, sent forms, failures, invitations, and the
-- people of deleted tenants. Returns the number of rows.
CREATE OR REPLACE FUNCTION sweep_console(p_kept_days int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_before timestamptz := now() - make_interval(days => p_kept_days);
    v_gone uuid[] := ARRAY(
        SELECT t.id FROM tenant t WHERE t.status = 'deleted' AND (
            EXISTS (SELECT FROM console_person p WHERE p.tenant_id = t.id)
            OR EXISTS (SELECT FROM console_session s WHERE s.tenant_id = t.id)
            OR EXISTS (SELECT FROM console_session s WHERE s.visited_tenant_id = t.id)
            OR EXISTS (SELECT FROM console_invitation i WHERE i.tenant_id = t.id)));
    v_count int;
    v_sum int := 0;
BEGIN
    UPDATE console_session SET provider_token = NULL
    WHERE provider_token IS NOT NULL
        AND (ended_at IS NOT NULL OR least(idle_until, absolute_until) < now());
    UPDATE console_session SET visited_tenant_id = NULL WHERE visited_tenant_id = ANY (v_gone);
    DELETE FROM console_session
    WHERE least(ended_at, idle_until, absolute_until) < v_before OR tenant_id = ANY (v_gone);
    GET DIAGNOSTICS v_count = ROW_COUNT; v_sum := v_sum + v_count;
    DELETE FROM console_person WHERE tenant_id = ANY (v_gone) OR (tenant_id, user_id) IN (
        SELECT u.tenant_id, u.id FROM tenant_user u WHERE u.status = 'deleted');
    GET DIAGNOSTICS v_count = ROW_COUNT; v_sum := v_sum + v_count;
    DELETE FROM console_invitation
    WHERE least(accepted_at, revoked_at, expires_at) < v_before OR tenant_id = ANY (v_gone);
    GET DIAGNOSTICS v_count = ROW_COUNT; v_sum := v_sum + v_count;
    DELETE FROM console_link WHERE expires_at < now();
    GET DIAGNOSTICS v_count = ROW_COUNT; v_sum := v_sum + v_count;
    DELETE FROM console_sign_in WHERE expires_at < now();
    GET DIAGNOSTICS v_count = ROW_COUNT; v_sum := v_sum + v_count;
    UPDATE console_form SET sealed = NULL WHERE sealed IS NOT NULL AND shown_until < now();
    DELETE FROM console_form WHERE expires_at < now();
    GET DIAGNOSTICS v_count = ROW_COUNT; v_sum := v_sum + v_count;
    DELETE FROM console_failure WHERE greatest(last_at, not_before) < now() - interval '1 day';
    GET DIAGNOSTICS v_count = ROW_COUNT; v_sum := v_sum + v_count;
    RETURN v_sum;
END $$;

REVOKE ALL ON FUNCTION console_session_end(console_session) FROM PUBLIC;
REVOKE ALL ON FUNCTION find_console_session(bytea, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION console_caller(uuid, uuid, uuid, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION use_console_link(bytea) FROM PUBLIC;
REVOKE ALL ON FUNCTION sweep_console(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION console_session_end(console_session) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION find_console_session(bytea, boolean) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION console_caller(uuid, uuid, uuid, boolean) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION use_console_link(bytea) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION sweep_console(int) TO image_gateway_app;
