"""Forms that make a secret are used once, and the secret is shown once."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_22_shown_once"
down_revision = "2026_11_30_21_sealed_sign_ins"

TABLE = """
CREATE TABLE console_form (
    id uuid PRIMARY KEY,
    digest bytea NOT NULL UNIQUE,
    session_id uuid NOT NULL,
    path text NOT NULL,
    sealed bytea,
    shown_until timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
GRANT SELECT, INSERT, DELETE, UPDATE (path, sealed) ON console_form TO image_gateway_app;
"""


def upgrade() -> None:
    """Create the table."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    run_script(op.get_bind(), TABLE)
