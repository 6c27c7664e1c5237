"""Sessions are found by their key, and a sign-in that has begun is prolonged by the next one."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_20_open_sessions"
down_revision = "2026_11_30_19_key_use"

CHANGES = """
-- A table of a few thousand rows, which the sweeper keeps small: the lock lasts milliseconds.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX console_session_api_key ON console_session (api_key_id, id)
    WHERE api_key_id IS NOT NULL AND ended_at IS NULL;
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX console_session_operator_key ON console_session (operator_key_id, id)
    WHERE operator_key_id IS NOT NULL AND ended_at IS NULL;
GRANT UPDATE (expires_at) ON console_sign_in TO image_gateway_app;
"""


def upgrade() -> None:
    """Create the indexes, and grant the column."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), CHANGES)
