-- Announcements of changed rows, which invalidate the gateways' caches, and append-only tables.

-- Announce a tag, and record it: gateways that miss the notification read the record.
CREATE OR REPLACE FUNCTION announce(p_tag text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('gateway_changed', p_tag);
    INSERT INTO change (tag) VALUES (p_tag);
END $$;

-- Announce the tag of the cached look-ups of a row: its tenant, or the table's name.
CREATE OR REPLACE FUNCTION notify_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME IN ('price', 'operator_key') THEN
        PERFORM announce(TG_TABLE_NAME);
    ELSIF TG_TABLE_NAME = 'tenant' THEN
        PERFORM announce(NEW.id::text);
    ELSE
        PERFORM announce(coalesce(NEW.tenant_id, OLD.tenant_id)::text);
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION notify_table() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM announce(TG_TABLE_NAME);
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE OR REPLACE TRIGGER tenant_changed AFTER UPDATE ON tenant
    FOR EACH ROW EXECUTE FUNCTION notify_changed();
CREATE OR REPLACE TRIGGER tenant_user_changed AFTER UPDATE ON tenant_user
    FOR EACH ROW EXECUTE FUNCTION notify_changed();
CREATE OR REPLACE TRIGGER credential_changed AFTER INSERT OR DELETE OR UPDATE ON credential
    FOR EACH ROW EXECUTE FUNCTION notify_changed();
CREATE OR REPLACE TRIGGER rate_limit_changed AFTER INSERT OR DELETE OR UPDATE ON rate_limit
    FOR EACH ROW EXECUTE FUNCTION notify_changed();
CREATE OR REPLACE TRIGGER price_changed AFTER INSERT ON price
    FOR EACH ROW EXECUTE FUNCTION notify_changed();
CREATE OR REPLACE TRIGGER sealed_secret_changed AFTER INSERT OR DELETE OR UPDATE ON sealed_secret
    FOR EACH ROW EXECUTE FUNCTION notify_table();

CREATE OR REPLACE TRIGGER api_key_changed AFTER UPDATE ON api_key
    FOR EACH ROW EXECUTE FUNCTION notify_changed();
-- A new key may be in the negative cache of a gateway that has just refused it.
CREATE OR REPLACE TRIGGER api_key_issued AFTER INSERT ON api_key
    FOR EACH ROW EXECUTE FUNCTION notify_table();
CREATE OR REPLACE TRIGGER operator_key_changed AFTER UPDATE ON operator_key
    FOR EACH ROW WHEN (
        OLD.digest = NEW.digest AND OLD.last_used_at IS NOT DISTINCT FROM NEW.last_used_at
    ) EXECUTE FUNCTION notify_table();
CREATE OR REPLACE TRIGGER operator_key_made AFTER INSERT ON operator_key
    FOR EACH ROW EXECUTE FUNCTION notify_table();

CREATE OR REPLACE TRIGGER audit_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE OR REPLACE TRIGGER ledger_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON ledger
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE OR REPLACE TRIGGER price_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON price
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
