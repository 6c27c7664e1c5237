"""Sign-ins that have begun, and the ID tokens of sessions, are sealed from now on."""

from alembic import op

revision = "2026_11_30_21_sealed_sign_ins"
down_revision = "2026_11_30_20_open_sessions"


def upgrade() -> None:
    """Remove those that are not sealed: people begin again, and sign out here alone."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DELETE FROM console_sign_in")
    op.execute("UPDATE console_session SET provider_token = NULL WHERE provider_token IS NOT NULL")
