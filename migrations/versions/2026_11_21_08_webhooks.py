"""Webhooks: endpoints that hear events, the secrets that sign for them, and what was delivered.

The release before keeps working: it neither reads nor writes any of this.
"""

from alembic import op

revision = "2026_11_21_08_webhooks"
down_revision = "2026_11_21_07_events"

ROLE = "image_gateway_app"

# A tenant's endpoint and its delivery can then only refer to what is the same tenant's.
EVENT_TABLE = """
ALTER TABLE event ADD CONSTRAINT event_of_tenant UNIQUE (tenant_id, id)
"""

ENDPOINT_TABLE = """
CREATE TABLE webhook_endpoint (
    id UUID NOT NULL,
    tenant_id UUID,
    url TEXT NOT NULL,
    event_types TEXT[],
    livemode BOOLEAN,
    description TEXT DEFAULT '' NOT NULL,
    disabled_at TIMESTAMP WITH TIME ZONE,
    disabled_reason TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT webhook_endpoint_of_tenant UNIQUE (tenant_id, id),
    CONSTRAINT webhook_endpoint_url CHECK (url ~* '^https?://' AND length(url) <= 8192),
    CONSTRAINT webhook_endpoint_event_types CHECK (cardinality(event_types) > 0),
    CONSTRAINT webhook_endpoint_disabled
        CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL)),
    CONSTRAINT webhook_endpoint_disabled_reason CHECK (disabled_reason IN ('operator', 'gone')),
    FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
)
"""

SIGNING_TABLE = """
CREATE TABLE webhook_secret (
    id UUID NOT NULL,
    tenant_id UUID,
    endpoint_id UUID NOT NULL,
    data_key_version SMALLINT,
    sealed BYTEA NOT NULL,
    valid_until TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT webhook_secret_key CHECK ((tenant_id IS NULL) = (data_key_version IS NULL)),
    FOREIGN KEY(endpoint_id) REFERENCES webhook_endpoint (id) ON DELETE CASCADE,
    CONSTRAINT webhook_secret_own_endpoint FOREIGN KEY(tenant_id, endpoint_id)
        REFERENCES webhook_endpoint (tenant_id, id) ON DELETE CASCADE
)
"""

DELIVERY_TABLE = """
CREATE TABLE webhook_delivery (
    id UUID NOT NULL,
    tenant_id UUID,
    endpoint_id UUID NOT NULL,
    event_id UUID NOT NULL,
    status TEXT DEFAULT 'pending' NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    next_attempt_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
    last_status INTEGER,
    last_error TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT webhook_delivery_once UNIQUE (event_id, endpoint_id),
    CONSTRAINT webhook_delivery_status CHECK (status IN ('pending', 'delivered', 'dead')),
    CONSTRAINT webhook_delivery_pending CHECK ((status = 'pending') = (next_attempt_at IS NOT NULL)),
    CONSTRAINT webhook_delivery_finished CHECK ((status = 'pending') = (finished_at IS NULL)),
    FOREIGN KEY(endpoint_id) REFERENCES webhook_endpoint (id) ON DELETE CASCADE,
    FOREIGN KEY(event_id) REFERENCES event (id) ON DELETE RESTRICT,
    CONSTRAINT webhook_delivery_own_endpoint FOREIGN KEY(tenant_id, endpoint_id)
        REFERENCES webhook_endpoint (tenant_id, id) ON DELETE CASCADE,
    CONSTRAINT webhook_delivery_own_event FOREIGN KEY(tenant_id, event_id)
        REFERENCES event (tenant_id, id) ON DELETE RESTRICT
)
"""

INDEXES = (
    "CREATE INDEX webhook_secret_endpoint ON webhook_secret (endpoint_id)",
    "CREATE INDEX webhook_delivery_due ON webhook_delivery (endpoint_id, next_attempt_at) WHERE status = 'pending'",
    "CREATE INDEX webhook_delivery_history ON webhook_delivery (endpoint_id, id)",
    "CREATE INDEX webhook_delivery_old ON webhook_delivery (finished_at) WHERE status <> 'pending'",
    "CREATE INDEX event_announced ON event (announced_at) WHERE announced_at IS NOT NULL",
)


def isolation(table: str) -> tuple[str, ...]:
    """Row-level security: a tenant's own rows; the house's and everybody's for operators."""
    return (
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        f"""CREATE POLICY tenant_isolation ON {table} TO {ROLE} USING (
            tenant_id = nullif(current_setting('gateway.tenant_id', true), '')::uuid
            OR current_setting('gateway.operator', true) = 'on')""",
        f"CREATE POLICY owner ON {table} TO CURRENT_USER USING (true)",
    )


GRANTS = {
    "webhook_endpoint": "SELECT, INSERT, DELETE, UPDATE (url, event_types, livemode, description,"
    " disabled_at, disabled_reason, updated_at)",
    "webhook_secret": "SELECT, INSERT, DELETE, UPDATE (valid_until)",
    "webhook_delivery": "SELECT, INSERT, DELETE, UPDATE (status, attempts, next_attempt_at,"
    " last_status, last_error, finished_at)",
}


def upgrade() -> None:
    """Add the tables, who may see and change them, and the sweep that prunes them."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statement in (EVENT_TABLE, ENDPOINT_TABLE, SIGNING_TABLE, DELIVERY_TABLE, *INDEXES):
        op.execute(statement)
    for table, rights in GRANTS.items():
        for statement in isolation(table):
            op.execute(statement)
        op.execute(f"GRANT {rights} ON {table} TO {ROLE}")
    op.execute("INSERT INTO sweep (name) VALUES ('webhooks')")
