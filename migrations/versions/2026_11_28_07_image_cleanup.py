"""The last clean-up of each owner's images, which the storage statistics name.

The release before keeps working: it records none.
"""

from alembic import op

revision = "2026_11_28_07_image_cleanup"
down_revision = "2026_11_28_03_image_spool"

ROLE = "image_gateway_app"

TABLE = """
CREATE TABLE image_cleanup (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    tenant_id UUID NOT NULL,
    livemode BOOLEAN NOT NULL,
    user_id UUID,
    cleaned_at TIMESTAMP WITH TIME ZONE NOT NULL,
    images INTEGER NOT NULL,
    CONSTRAINT image_cleanup_pkey PRIMARY KEY (id),
    CONSTRAINT image_cleanup_owner UNIQUE NULLS NOT DISTINCT (tenant_id, livemode, user_id),
    CONSTRAINT image_cleanup_images CHECK (images > 0),
    CONSTRAINT image_cleanup_tenant_id_fkey FOREIGN KEY (tenant_id)
        REFERENCES tenant (id) ON DELETE RESTRICT
)
"""

ISOLATION = (
    "ALTER TABLE image_cleanup ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE image_cleanup FORCE ROW LEVEL SECURITY",
    f"""CREATE POLICY tenant_isolation ON image_cleanup TO {ROLE} USING (
        tenant_id = nullif(current_setting('gateway.tenant_id', true), '')::uuid
        OR current_setting('gateway.operator', true) = 'on')""",
    "CREATE POLICY owner ON image_cleanup TO CURRENT_USER USING (true)",
)


def upgrade() -> None:
    """Add the table, and who may see and change it."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(TABLE)
    for statement in ISOLATION:
        op.execute(statement)
    op.execute(f"GRANT SELECT, INSERT, UPDATE (cleaned_at, images) ON image_cleanup TO {ROLE}")
