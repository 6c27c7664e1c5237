"""Who may do what: the serving role, row-level security, and notices of changed rows."""

from alembic import op

revision = "2026_11_20_03_access"
down_revision = "2026_11_20_02_money"

ROLE = "image_gateway_app"

# Roles belong to the whole server, so another database's migration may have made it already.
CREATE_ROLE = f"""
DO $$ BEGIN
    CREATE ROLE {ROLE} NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$
"""

TENANT_TABLES = (
    "tenant_user",
    "api_key",
    "data_key",
    "credential",
    "budget",
    "budget_period",
    "reservation",
    "ledger",
    "image",
)

# No UPDATE, DELETE or TRUNCATE on money: the functions alone write it.
GRANTS = {
    "tenant": "SELECT, INSERT, UPDATE (status, time_zone)",
    "tenant_user": "SELECT, INSERT",
    "api_key": "SELECT, INSERT, UPDATE (expires_at, revoked_at)",
    "operator_key": "SELECT, INSERT, UPDATE (revoked_at)",
    "sealed_secret": "SELECT, INSERT, UPDATE (sealed, master_key_id)",
    "data_key": "SELECT, INSERT, UPDATE (wrapped, master_key_id)",
    "credential": "SELECT, INSERT, UPDATE, DELETE",
    "price": "SELECT, INSERT",
    "budget": "SELECT, INSERT, UPDATE (limit_nano, updated_at)",
    "budget_period": "SELECT",
    "reservation": "SELECT",
    "ledger": "SELECT",
    "image": "SELECT, UPDATE (deleted_at)",
    "invariant_break": "SELECT",
    "alembic_version": "SELECT",
}

FUNCTIONS = (
    "reserve(jsonb, uuid)",
    "settle(jsonb)",
    "expire_reservations(int)",
    "estimate_unknown(interval, int)",
    "find_api_key(bytea)",
)

# The key arrives before its tenant is known, so this one lookup crosses tenants, by digest only.
FIND_API_KEY = """
CREATE FUNCTION find_api_key(p_digest bytea)
RETURNS TABLE (
    id uuid, tenant_id uuid, user_id uuid, livemode boolean, scopes text[], models text[],
    expires_at timestamptz, revoked_at timestamptz, tenant_status text
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT k.root_id, k.tenant_id, k.user_id, k.livemode, k.scopes, k.models, k.expires_at,
        k.revoked_at, t.status
    FROM api_key k JOIN tenant t ON t.id = k.tenant_id WHERE k.digest = p_digest
$$
"""

NOTIFY_CHANGED = """
CREATE FUNCTION notify_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME IN ('price', 'operator_key') THEN
        PERFORM pg_notify('gateway_changed', TG_TABLE_NAME);
    ELSIF TG_TABLE_NAME = 'tenant' THEN
        PERFORM pg_notify('gateway_changed', NEW.id::text);
    ELSE
        PERFORM pg_notify('gateway_changed', coalesce(NEW.tenant_id, OLD.tenant_id)::text);
    END IF;
    RETURN NULL;
END $$
"""

NOTIFIED = {
    "tenant": "UPDATE",
    "api_key": "UPDATE",
    "operator_key": "UPDATE",
    "credential": "INSERT OR UPDATE OR DELETE",
    "price": "INSERT",
}


def upgrade() -> None:
    """Create role, policies, grants and triggers."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(CREATE_ROLE)
    # Lets the owner's own address serve as this role (`SET ROLE`).
    op.execute(f"GRANT {ROLE} TO CURRENT_USER")
    op.execute(f"GRANT USAGE ON SCHEMA public TO {ROLE}")
    _isolate("tenant", "id")
    for table in TENANT_TABLES:
        _isolate(table, "tenant_id")
    op.execute(FIND_API_KEY)
    for table, rights in GRANTS.items():
        op.execute(f"GRANT {rights} ON {table} TO {ROLE}")
    for function in FUNCTIONS:
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {ROLE}")
    op.execute(NOTIFY_CHANGED)
    for table, events in NOTIFIED.items():
        op.execute(
            f"CREATE TRIGGER {table}_changed AFTER {events} ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION notify_changed()"
        )


def _isolate(table: str, column: str) -> None:
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY tenant_isolation ON {table} TO {ROLE} USING ("
        f"{column} = nullif(current_setting('gateway.tenant_id', true), '')::uuid"
        " OR current_setting('gateway.operator', true) = 'on')"
    )
    # The money functions run as the owner, for many tenants in one commit.
    op.execute(f"CREATE POLICY owner ON {table} TO CURRENT_USER USING (true)")
