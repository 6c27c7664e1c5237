"""Reports divide their period for each time zone: it is kept beside the sums of days."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_01_usage_by_zone"
down_revision = "2026_11_29_02_usage_sums"

CHANGES = """
ALTER TABLE usage_day ADD COLUMN zone text;
UPDATE usage_day d SET zone = t.time_zone FROM tenant t WHERE t.id = d.tenant_id;
ALTER TABLE usage_day ALTER COLUMN zone SET NOT NULL;
ALTER TABLE usage_owner_day ADD COLUMN zone text;
UPDATE usage_owner_day d SET zone = t.time_zone FROM tenant t WHERE t.id = d.tenant_id;
ALTER TABLE usage_owner_day ALTER COLUMN zone SET NOT NULL;
CREATE INDEX usage_slot_of_all ON usage_slot (slot, livemode);
DROP FUNCTION IF EXISTS usage_ranges(uuid, text, timestamptz, timestamptz, text);
"""


def upgrade() -> None:
    """Add the columns and the index; the functions of reports are files."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), CHANGES)
