-- Look-ups of callers by a key's digest or a token's claims, and rehashing. They run before the
-- tenant is known, so that they cross tenants. Each takes a digest or a claim, never a wildcard.

CREATE OR REPLACE FUNCTION account_status(p_tenant_status text, p_user_status text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT CASE WHEN p_tenant_status <> 'active' THEN p_tenant_status
                WHEN p_user_status IN ('disabled', 'deleted') THEN 'user_' || p_user_status
                ELSE p_tenant_status END
$$;

-- The caller whose API key has this digest; revoked and expired keys too, which the gateway tells
-- apart.
CREATE OR REPLACE FUNCTION find_caller(p_digest bytea)
RETURNS TABLE (
    id uuid, tenant_id uuid, user_id uuid, livemode boolean, scopes text[], models text[],
    expires_at timestamptz, revoked_at timestamptz, tenant_status text, continuity boolean,
    stores_prompts boolean, image_retention_seconds int
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT k.root_id, k.tenant_id, k.user_id, k.livemode, k.scopes, k.models, k.expires_at,
        k.revoked_at, account_status(t.status, u.status), t.continuity, t.stores_prompts,
        t.image_retention_seconds
    FROM api_key k
    JOIN tenant t ON t.id = k.tenant_id
    LEFT JOIN tenant_user u ON u.tenant_id = k.tenant_id AND u.id = k.user_id
    WHERE k.digest = p_digest
$$;

-- The tenant and user that a token of the identity provider names; the tenant by id, else by name.
--
-- Creates a user that an active tenant does not have yet, with an audit entry. No row: no such
-- tenant.
CREATE OR REPLACE FUNCTION find_caller_by_claims(
    p_tenant_id uuid, p_tenant_name text, p_user_name text, p_new_user_id uuid
) RETURNS TABLE (
    tenant_id uuid, user_id uuid, tenant_status text, continuity boolean, stores_prompts boolean,
    image_retention_seconds int
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    t tenant;
    u tenant_user;
BEGIN
    SELECT * INTO t FROM tenant WHERE id = p_tenant_id;
    IF NOT FOUND THEN
        SELECT * INTO t FROM tenant WHERE name = p_tenant_name;
    END IF;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT * INTO u FROM tenant_user WHERE tenant_id = t.id AND name = p_user_name;
    IF NOT FOUND AND t.status = 'active' THEN
        INSERT INTO tenant_user (id, tenant_id, name) VALUES (p_new_user_id, t.id, p_user_name)
        ON CONFLICT (tenant_id, name) DO NOTHING;
        IF FOUND THEN
            INSERT INTO audit (id, actor_type, actor_id, action, tenant_id, object_id, after)
            VALUES (gen_random_uuid(), 'user', p_new_user_id::text, 'user.created', t.id,
                p_new_user_id::text, jsonb_build_object('name', p_user_name));
        END IF;
        SELECT * INTO u FROM tenant_user WHERE tenant_id = t.id AND name = p_user_name;
    END IF;
    RETURN QUERY SELECT t.id, u.id, account_status(t.status, u.status), t.continuity,
        t.stores_prompts, t.image_retention_seconds;
END $$;

-- The rate limits of a caller, each as "owner kind value", the tenant's, the user's and the key's.
CREATE OR REPLACE FUNCTION limits_of(
    p_tenant_id uuid, p_api_key_id uuid, p_user_id uuid, p_livemode boolean
) RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT coalesce(array_agg(concat_ws(' ',
        CASE WHEN l.api_key_id IS NOT NULL THEN 'key'
             WHEN l.user_id IS NOT NULL THEN 'user' ELSE 'tenant' END,
        l.kind, l.value) ORDER BY l.id), '{}')
    FROM rate_limit l
    WHERE l.tenant_id = p_tenant_id AND l.livemode = p_livemode
        AND (l.api_key_id IS NULL OR l.api_key_id = p_api_key_id)
        AND (l.user_id IS NULL OR l.user_id = p_user_id)
$$;

-- Give a key its digest under the newest pepper.
CREATE OR REPLACE FUNCTION rehash_key(p_old bytea, p_new bytea, p_version int) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    UPDATE api_key SET digest = p_new, pepper_version = p_version WHERE digest = p_old;
    UPDATE operator_key SET digest = p_new, pepper_version = p_version WHERE digest = p_old;
$$;

-- Only SECURITY DEFINER functions are revoked from other roles: the rest have only their caller's
-- rights.
REVOKE ALL ON FUNCTION find_caller(bytea) FROM PUBLIC;
REVOKE ALL ON FUNCTION find_caller_by_claims(uuid, text, text, uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION limits_of(uuid, uuid, uuid, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION rehash_key(bytea, bytea, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_caller(bytea) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION find_caller_by_claims(uuid, text, text, uuid) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION limits_of(uuid, uuid, uuid, boolean) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION rehash_key(bytea, bytea, int) TO image_gateway_app;
