"""Let the serving role seal webhook secrets anew, as it may credentials.

The release before keeps working: it does not do so.
"""

from alembic import op

revision = "2026_11_28_01b_resealing"
down_revision = "2026_11_28_07_image_cleanup"

ROLE = "image_gateway_app"


def upgrade() -> None:
    """Grant the right."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(f"GRANT UPDATE (sealed, data_key_version) ON webhook_secret TO {ROLE}")
