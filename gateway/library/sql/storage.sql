-- Storage caps: the bytes of the stored images of each tenant that has a cap, kept as a counter.
--
-- The path of a call does not write it. Images are added to the counter in the order of their time,
-- up to a while ago, when every call has committed; the few later ones are summed when asked for. A
-- deletion takes an image away if it was counted, which the counter's time tells.

-- Count the images of a tenant that are older than ten minutes, and return the bytes of all.
-- Expired images count until they are deleted. Locks: the row of stored_bytes.
CREATE OR REPLACE FUNCTION count_stored(p_tenant_id uuid) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_from timestamptz;
    v_to timestamptz := now() - interval '10 minutes';
    v_added bigint;
    v_newer bigint;
    v_counted bigint;
BEGIN
    INSERT INTO stored_bytes (tenant_id, counted_to, size_bytes)
    VALUES (p_tenant_id, '-infinity', 0) ON CONFLICT DO NOTHING;
    SELECT s.counted_to, s.size_bytes INTO v_from, v_counted FROM stored_bytes s
    WHERE s.tenant_id = p_tenant_id FOR UPDATE;
    -- Both modes are named, so that the index of the history serves.
    SELECT coalesce(sum(i.size_bytes) FILTER (WHERE i.created_at <= v_to), 0),
        coalesce(sum(i.size_bytes) FILTER (WHERE i.created_at > v_to), 0)
    INTO v_added, v_newer
    FROM image i
    WHERE i.tenant_id = p_tenant_id AND i.livemode IN (true, false) AND i.created_at > v_from
        AND i.deleted_at IS NULL;
    IF v_added > 0 THEN
        UPDATE stored_bytes s SET counted_to = v_to, size_bytes = s.size_bytes + v_added
        WHERE s.tenant_id = p_tenant_id;
    END IF;
    RETURN v_counted + v_added + v_newer;
END $$;

-- The tenants of a page, in the order of their ids, that have more stored than their cap; the last
-- row has the page's last tenant and no cap, unless the page is empty. Locks: as count_stored.
CREATE OR REPLACE FUNCTION tenants_beyond_caps(p_after uuid, p_most int)
RETURNS TABLE (beyond_id uuid, max_bytes bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    c record;
BEGIN
    FOR c IN
        SELECT t.id, t.max_image_bytes FROM tenant t
        WHERE t.max_image_bytes IS NOT NULL AND t.id > p_after ORDER BY t.id LIMIT p_most
    LOOP
        beyond_id := c.id;
        IF count_stored(c.id) > c.max_image_bytes THEN
            max_bytes := c.max_image_bytes;
            RETURN NEXT;
        END IF;
    END LOOP;
    IF beyond_id IS NOT NULL THEN
        max_bytes := NULL;
        RETURN NEXT;
    END IF;
END $$;

-- Take deleted images from the counter. Locks: rows of stored_bytes, by tenant.
CREATE OR REPLACE FUNCTION uncount_deleted() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    c record;
    v_to timestamptz;
BEGIN
    FOR c IN
        SELECT DISTINCT o.tenant_id
        FROM was o JOIN becomes n ON n.tenant_id = o.tenant_id AND n.id = o.id
        WHERE o.deleted_at IS NULL AND n.deleted_at IS NOT NULL ORDER BY 1
    LOOP
        SELECT s.counted_to INTO v_to FROM stored_bytes s
        WHERE s.tenant_id = c.tenant_id FOR UPDATE;
        CONTINUE WHEN NOT FOUND;
        UPDATE stored_bytes s SET size_bytes = s.size_bytes - (
            SELECT coalesce(sum(o.size_bytes), 0)
            FROM was o JOIN becomes n ON n.tenant_id = o.tenant_id AND n.id = o.id
            WHERE o.tenant_id = c.tenant_id AND o.created_at <= v_to
                AND o.deleted_at IS NULL AND n.deleted_at IS NOT NULL)
        WHERE s.tenant_id = c.tenant_id;
    END LOOP;
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER image_uncounted AFTER UPDATE ON image
    REFERENCING OLD TABLE AS was NEW TABLE AS becomes
    FOR EACH STATEMENT EXECUTE FUNCTION uncount_deleted();

-- The counters that are not the sums of their images.
CREATE OR REPLACE VIEW storage_break WITH (security_invoker = true) AS
SELECT s.tenant_id FROM stored_bytes s
CROSS JOIN LATERAL (
    SELECT coalesce(sum(i.size_bytes), 0) AS size_bytes FROM image i
    WHERE i.tenant_id = s.tenant_id AND i.livemode IN (true, false) AND i.deleted_at IS NULL
        AND i.created_at <= s.counted_to
) i
WHERE i.size_bytes <> s.size_bytes;

GRANT SELECT ON storage_break TO image_gateway_app;

REVOKE ALL ON FUNCTION count_stored(uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION tenants_beyond_caps(uuid, int) FROM PUBLIC;
REVOKE ALL ON FUNCTION uncount_deleted() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tenants_beyond_caps(uuid, int) TO image_gateway_app;
