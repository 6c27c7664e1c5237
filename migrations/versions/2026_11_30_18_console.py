"""The console has people, sessions, invitations and sign-ins."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_18_console"
down_revision = "2026_11_30_17_listed_calls"

TABLES = """
CREATE TABLE console_person (
    id uuid PRIMARY KEY,
    tenant_id uuid REFERENCES tenant (id) ON DELETE RESTRICT,
    user_id uuid,
    issuer text NOT NULL,
    subject text NOT NULL,
    name text NOT NULL,
    email text,
    role text NOT NULL,
    has_claimed_role boolean NOT NULL,
    status text NOT NULL DEFAULT 'active',
    created_at timestamptz NOT NULL DEFAULT now(),
    last_sign_in_at timestamptz,
    CONSTRAINT console_person_role CHECK (role IN ('operator-admin', 'operator-viewer',
        'tenant-admin', 'tenant-member', 'tenant-billing-viewer')),
    CONSTRAINT console_person_owner CHECK ((role LIKE 'tenant-%') = (tenant_id IS NOT NULL)),
    CONSTRAINT console_person_identity UNIQUE (issuer, subject),
    CONSTRAINT console_person_status CHECK (status IN ('active', 'disabled'))
);
CREATE INDEX console_person_tenant ON console_person (tenant_id, id);

CREATE TABLE console_session (
    id uuid PRIMARY KEY,
    digest bytea NOT NULL UNIQUE,
    name text NOT NULL,
    role text NOT NULL,
    via text NOT NULL,
    tenant_id uuid REFERENCES tenant (id) ON DELETE RESTRICT,
    user_id uuid,
    person_id uuid REFERENCES console_person (id) ON DELETE CASCADE,
    api_key_id uuid,
    operator_key_id uuid REFERENCES operator_key (id) ON DELETE RESTRICT,
    visited_tenant_id uuid REFERENCES tenant (id) ON DELETE RESTRICT,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    idle_seconds int NOT NULL,
    idle_until timestamptz NOT NULL,
    absolute_until timestamptz NOT NULL,
    address text NOT NULL,
    agent text NOT NULL,
    provider_token text,
    ended_at timestamptz,
    end_reason text,
    CONSTRAINT console_session_role CHECK (role IN ('operator-admin', 'operator-viewer',
        'tenant-admin', 'tenant-member', 'tenant-billing-viewer')),
    CONSTRAINT console_session_owner CHECK ((role LIKE 'tenant-%') = (tenant_id IS NOT NULL)),
    CONSTRAINT console_session_via CHECK (via IN ('oidc', 'link', 'admin_key', 'api_key')),
    CONSTRAINT console_session_idle CHECK (idle_seconds > 0),
    CONSTRAINT console_session_end_reason CHECK ((ended_at IS NULL) = (end_reason IS NULL)),
    CONSTRAINT console_session_visit CHECK (visited_tenant_id IS NULL OR role = 'operator-admin')
);
CREATE INDEX console_session_tenant ON console_session (tenant_id, id);
CREATE INDEX console_session_person ON console_session (person_id);
CREATE INDEX console_session_until ON console_session (absolute_until);

CREATE TABLE console_invitation (
    id uuid PRIMARY KEY,
    digest bytea NOT NULL UNIQUE,
    tenant_id uuid REFERENCES tenant (id) ON DELETE RESTRICT,
    email text NOT NULL,
    role text NOT NULL,
    invited_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    accepted_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT console_invitation_role CHECK (role IN ('operator-admin', 'operator-viewer',
        'tenant-admin', 'tenant-member', 'tenant-billing-viewer')),
    CONSTRAINT console_invitation_owner CHECK ((role LIKE 'tenant-%') = (tenant_id IS NOT NULL))
);
CREATE INDEX console_invitation_tenant ON console_invitation (tenant_id, id);

CREATE TABLE console_link (
    digest bytea PRIMARY KEY,
    made_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at timestamptz
);

CREATE TABLE console_sign_in (
    digest bytea PRIMARY KEY,
    state jsonb NOT NULL DEFAULT '{}',
    expires_at timestamptz NOT NULL
);

CREATE TABLE console_failure (
    account text PRIMARY KEY,
    failures int NOT NULL,
    last_at timestamptz NOT NULL DEFAULT now(),
    not_before timestamptz NOT NULL DEFAULT now()
);

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['console_person', 'console_session', 'console_invitation'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', v_table);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', v_table);
        EXECUTE format(
            'CREATE POLICY tenant_isolation ON %I TO image_gateway_app USING ('
            'tenant_id = nullif(current_setting(''gateway.tenant_id'', true), '''')::uuid)',
            v_table);
        EXECUTE format('CREATE POLICY owner ON %I TO CURRENT_USER USING (true)', v_table);
    END LOOP;
END $$;

GRANT SELECT, INSERT, DELETE, UPDATE (user_id, name, email, role, tenant_id, has_claimed_role,
    status, last_sign_in_at) ON console_person TO image_gateway_app;
GRANT SELECT, INSERT, DELETE, UPDATE (digest, visited_tenant_id, last_seen_at, idle_until,
    provider_token, ended_at, end_reason) ON console_session TO image_gateway_app;
GRANT SELECT, INSERT, DELETE, UPDATE (accepted_at, revoked_at) ON console_invitation
    TO image_gateway_app;
GRANT SELECT, INSERT, DELETE, UPDATE (used_at) ON console_link TO image_gateway_app;
GRANT SELECT, INSERT, DELETE, UPDATE (state) ON console_sign_in TO image_gateway_app;
GRANT SELECT, INSERT, DELETE, UPDATE (failures, last_at, not_before) ON console_failure
    TO image_gateway_app;

ALTER TABLE request_log ADD COLUMN session_id uuid;

INSERT INTO sweep (name) VALUES ('console') ON CONFLICT DO NOTHING;
"""


def upgrade() -> None:
    """Create the tables."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), TABLES)
