"""Images that wait for the store: sealed bytes, kept until the store takes them.

The release before keeps working: it neither writes nor reads the table.
"""

from alembic import op

revision = "2026_11_28_03_image_spool"
down_revision = "2026_11_28_04_request_log"

ROLE = "image_gateway_app"

TABLE = """
CREATE TABLE image_spool (
    image_id TEXT NOT NULL,
    tenant_id UUID NOT NULL,
    path TEXT NOT NULL,
    data_key_version SMALLINT NOT NULL,
    sealed BYTEA NOT NULL,
    size_bytes BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    next_attempt_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (image_id),
    CONSTRAINT image_spool_size CHECK (size_bytes > 0),
    FOREIGN KEY (tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
)
"""

# The policies of every tenant table: the serving role by its tenant, the owner's functions freely.
POLICY = f"""
CREATE POLICY tenant_isolation ON image_spool TO {ROLE} USING (
    tenant_id = nullif(current_setting('gateway.tenant_id', true), '')::uuid
    OR current_setting('gateway.operator', true) = 'on'
)
"""


def upgrade() -> None:
    """Create the table, isolated by tenant."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(TABLE)
    # Ciphertext does not compress: EXTERNAL spares Postgres the attempt.
    op.execute("ALTER TABLE image_spool ALTER COLUMN sealed SET STORAGE EXTERNAL")
    op.execute("CREATE INDEX image_spool_due ON image_spool (next_attempt_at)")
    op.execute("ALTER TABLE image_spool ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE image_spool FORCE ROW LEVEL SECURITY")
    op.execute(POLICY)
    op.execute("CREATE POLICY owner ON image_spool TO CURRENT_USER USING (true)")
    op.execute(
        f"GRANT SELECT, INSERT, DELETE, UPDATE (attempts, next_attempt_at) ON image_spool TO {ROLE}"
    )
