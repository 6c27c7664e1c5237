-- Look-ups of callers by a key's digest or a token's claims, and rehashing. They run before the
-- tenant is known, so that they cross tenants. Each takes a digest or a claim, never a wildcard.

CREATE OR REPLACE FUNCTION account_status(p_tenant_status text, p_user_status text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT CASE WHEN p_tenant_status <> 'active' THEN p_tenant_status
                WHEN p_user_status IN ('disabled', 'deleted') THEN 'user_' || p_user_status
                ELSE p_tenant_status END
$$;

-- The rate limits of a caller, each as "owner kind value", the tenant's, the user's and the key's.
CREATE OR REPLACE FUNCTION limits_of(
    p_tenant_id uuid, p_api_key_id uuid, p_user_id uuid, p_livemode boolean
) RETURNS text[]
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
BEGIN
    RETURN ARRAY(
        SELECT concat_ws(' ',
            CASE WHEN l.api_key_id IS NOT NULL THEN 'key'
                 WHEN l.user_id IS NOT NULL THEN 'user' ELSE 'tenant' END,
            l.kind, l.value)
        FROM rate_limit l
        WHERE l.tenant_id = p_tenant_id AND l.livemode = p_livemode
            AND (l.api_key_id IS NULL OR l.api_key_id = p_api_key_id)
            AND (l.user_id IS NULL OR l.user_id = p_user_id)
        ORDER BY l.id
    );
END $$;

-- The sealed credentials of a tenant and one of its users, with the wrapped data keys that open
-- them, as a JSON list; NULL if there are none.
CREATE OR REPLACE FUNCTION credentials_of(p_tenant_id uuid, p_user_id uuid) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
BEGIN
    RETURN (
        SELECT json_agg(json_build_object(
            'id', c.id, 'user_id', c.user_id, 'provider', c.provider, 'version', c.version,
            'data_key_version', c.data_key_version, 'sealed', encode(c.sealed, 'hex'),
            'wrapped', encode(d.wrapped, 'hex'), 'master_key_id', d.master_key_id))
        FROM credential c
        LEFT JOIN data_key d ON d.tenant_id = c.tenant_id AND d.version = c.data_key_version
        WHERE c.tenant_id = p_tenant_id AND (c.user_id IS NULL OR c.user_id = p_user_id)
    );
END $$;

-- The callers whose API keys have these digests, each with its limits and, for live keys, its
-- credentials: everything that a gateway caches of a caller, in one round trip for many of them.
--
-- Expired keys are returned too, revoked ones are not. The directory gives tenant and key; the
-- rest is looked up by tenant. Sequential scans are off, because a plan that was made over empty
-- tables is used for as long as the connection lives.
CREATE OR REPLACE FUNCTION find_callers(p_digests bytea[])
RETURNS TABLE (
    digest bytea, id uuid, tenant_id uuid, user_id uuid, livemode boolean, scopes text[],
    models text[], expires_at timestamptz, tenant_status text, continuity boolean,
    fallback boolean, stores_prompts boolean, image_retention_seconds int, limits text[], credentials text
) LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
BEGIN
    RETURN QUERY
    SELECT d.digest, k.root_id, k.tenant_id, k.user_id, k.livemode, k.scopes, k.models,
        k.expires_at, account_status(t.status, u.status), t.continuity, t.fallback,
        t.stores_prompts, t.image_retention_seconds,
        limits_of(k.tenant_id, k.root_id, k.user_id, k.livemode),
        CASE WHEN k.livemode THEN credentials_of(k.tenant_id, k.user_id) END
    FROM key_directory d
    JOIN api_key k ON k.tenant_id = d.tenant_id AND k.id = d.api_key_id
    JOIN tenant t ON t.id = k.tenant_id
    LEFT JOIN tenant_user u ON u.tenant_id = k.tenant_id AND u.id = k.user_id
    WHERE d.digest = ANY (p_digests) AND k.revoked_at IS NULL;
END $$;

-- The tenant and user that a token of the identity provider names; the tenant by id, else by name.
--
-- Creates a user that an active tenant does not have yet, with an audit entry. No row: no such
-- tenant.
CREATE OR REPLACE FUNCTION find_caller_by_claims(
    p_tenant_id uuid, p_tenant_name text, p_user_name text, p_new_user_id uuid
) RETURNS TABLE (
    tenant_id uuid, user_id uuid, tenant_status text, continuity boolean, fallback boolean,
    stores_prompts boolean, image_retention_seconds int
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
        t.fallback, t.stores_prompts, t.image_retention_seconds;
END $$;

-- Give a key its digest under the newest pepper.
CREATE OR REPLACE FUNCTION rehash_key(p_old bytea, p_new bytea, p_version int) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    UPDATE key_directory SET digest = p_new, pepper_version = p_version WHERE digest = p_old;
    UPDATE operator_key SET digest = p_new, pepper_version = p_version WHERE digest = p_old;
$$;

-- Only SECURITY DEFINER functions are revoked from other roles: the rest have only their caller's
-- rights.
REVOKE ALL ON FUNCTION find_callers(bytea[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION find_caller_by_claims(uuid, text, text, uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION credentials_of(uuid, uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION limits_of(uuid, uuid, uuid, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION rehash_key(bytea, bytea, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_callers(bytea[]) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION find_caller_by_claims(uuid, text, text, uuid) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION credentials_of(uuid, uuid) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION limits_of(uuid, uuid, uuid, boolean) TO image_gateway_app;
GRANT EXECUTE ON FUNCTION rehash_key(bytea, bytea, int) TO image_gateway_app;
