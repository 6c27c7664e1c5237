"""Events: what somebody is to be told of. Written in the commit that makes them true.

The release before keeps working: it writes none, and reads none.
"""

from alembic import op

revision = "2026_11_21_07_events"
down_revision = "2026_11_21_06_rate_limits"

ROLE = "image_gateway_app"

EVENT = """
CREATE TABLE event (
    id UUID DEFAULT gen_random_uuid() NOT NULL,
    tenant_id UUID,
    livemode BOOLEAN NOT NULL,
    type TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    data JSONB NOT NULL,
    announced_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT event_type CHECK (type <> ''),
    FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
)
"""

# Few rows ever: what nobody has been told of yet.
WAITING = "CREATE INDEX event_waiting ON event (created_at) WHERE announced_at IS NULL"

ISOLATION = f"""
ALTER TABLE event ENABLE ROW LEVEL SECURITY;
ALTER TABLE event FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON event TO {ROLE} USING (
    tenant_id = nullif(current_setting('gateway.tenant_id', true), '')::uuid
    OR current_setting('gateway.operator', true) = 'on');
CREATE POLICY owner ON event TO CURRENT_USER USING (true)
"""


def upgrade() -> None:
    """Add the table, and who may see it."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statement in (EVENT, WAITING, *ISOLATION.split(";")):
        op.execute(statement)
    op.execute(f"GRANT SELECT, INSERT, UPDATE (announced_at), DELETE ON event TO {ROLE}")
