-- Isolation of tenants: the roles, rights and policies of every table with row-level security.
--
-- Runs after every migration, so that each table has them, whichever revision created it; where all
-- is in place it changes nothing and takes no locks.
--
-- image_gateway_app sees the rows of the tenant that a transaction has set, by a plain equality: the
-- planner estimates it like any other, and joins the statement's own one. image_gateway_operator sees
-- all rows, without a condition. A member of the first may become the second (SET ROLE) and never
-- inherits its rights.

DO $$ BEGIN
    CREATE ROLE image_gateway_operator NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;

DO $$
DECLARE
    -- Before Postgres 16 it is the member that inherits or not, since then each membership.
    v_plain text := CASE WHEN current_setting('server_version_num')::int < 160000 THEN ''
        ELSE ' WITH INHERIT FALSE, SET TRUE' END;
BEGIN
    IF (SELECT rolinherit FROM pg_roles WHERE rolname = 'image_gateway_app') THEN
        ALTER ROLE image_gateway_app NOINHERIT;
    END IF;
    IF NOT pg_has_role('image_gateway_app', 'image_gateway_operator', 'MEMBER') THEN
        BEGIN
            EXECUTE 'GRANT image_gateway_operator TO image_gateway_app' || v_plain;
        EXCEPTION WHEN unique_violation THEN NULL;  -- by the migration of another database
        END;
    END IF;
    IF NOT has_schema_privilege('image_gateway_operator', 'public', 'USAGE') THEN
        GRANT USAGE ON SCHEMA public TO image_gateway_operator;
    END IF;
END $$;

-- The same rights for both: what differs is which rows they see.
DO $$
DECLARE
    v_right record;
BEGIN
    FOR v_right IN
        WITH held AS (
            SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE '' END || c.oid::regclass::text
                    AS object,
                a.privilege_type AS privilege, a.grantee, '' AS columns
            FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a
            WHERE c.relnamespace = 'public'::regnamespace
            UNION ALL
            SELECT c.oid::regclass::text, a.privilege_type, a.grantee,
                format(' (%I)', t.attname)
            FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid
            CROSS JOIN LATERAL aclexplode(t.attacl) a
            WHERE c.relnamespace = 'public'::regnamespace AND NOT t.attisdropped
            UNION ALL
            SELECT 'FUNCTION ' || p.oid::regprocedure::text, a.privilege_type, a.grantee, ''
            FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) a
            WHERE p.pronamespace = 'public'::regnamespace
        )
        SELECT h.object, h.privilege, h.columns FROM held h
        WHERE h.grantee = 'image_gateway_app'::regrole AND NOT EXISTS (
            SELECT 1 FROM held o
            WHERE (o.object, o.privilege, o.columns) = (h.object, h.privilege, h.columns)
                AND o.grantee = 'image_gateway_operator'::regrole
        )
    LOOP
        EXECUTE 'GRANT ' || v_right.privilege || v_right.columns || ' ON ' || v_right.object
            || ' TO image_gateway_operator';
    END LOOP;
END $$;

DO $$
DECLARE
    v_table record;
BEGIN
    FOR v_table IN
        SELECT c.oid::regclass AS name, CASE c.relname WHEN 'tenant' THEN 'id' ELSE 'tenant_id' END
                AS tenant,
            -- Earlier revisions wrote both roles' conditions into one policy.
            EXISTS (SELECT 1 FROM pg_policy p WHERE p.polrelid = c.oid
                AND p.polname = 'tenant_isolation'
                AND pg_get_expr(p.polqual, p.polrelid) LIKE '%gateway.operator%') AS is_mixed,
            EXISTS (SELECT 1 FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname = 'operator')
                AS is_shown
        FROM pg_class c
        WHERE c.relrowsecurity AND c.relnamespace = 'public'::regnamespace AND NOT c.relispartition
    LOOP
        IF v_table.is_mixed THEN
            EXECUTE format('ALTER POLICY tenant_isolation ON %s USING ('
                '%I = nullif(current_setting(''gateway.tenant_id'', true), '''')::uuid)',
                v_table.name, v_table.tenant);
        END IF;
        IF NOT v_table.is_shown THEN
            EXECUTE format('CREATE POLICY operator ON %s TO image_gateway_operator USING (true)',
                v_table.name);
        END IF;
    END LOOP;
END $$;
