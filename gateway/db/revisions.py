"""The newest revision among the migrations, read from their files.

Importing Alembic would take longer than a whole read-only command.
"""

import re
from pathlib import Path

from gateway.errors import ConfigurationError

REVISION = re.compile(r'^revision\b[^=\n]*= *"([^"]+)"', re.MULTILINE)
DOWN_REVISION = re.compile(r'^down_revision\b[^=\n]*= *"([^"]+)"', re.MULTILINE)


def migrations_dir() -> Path:
    """Return the migrations' directory: in a wheel inside the package, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def newest_revision() -> str:
    """Return the revision that no other one builds on.

    Raises:
        ConfigurationError: the installation has none, or several.
    """
    texts = [path.read_text() for path in (migrations_dir() / "versions").glob("*.py")]
    revisions = {found[1] for text in texts if (found := REVISION.search(text))}
    heads = revisions - {found[1] for text in texts if (found := DOWN_REVISION.search(text))}
    if len(heads) != 1:
        raise ConfigurationError(
            f"The migrations in {migrations_dir()} have {len(heads)} newest revisions instead of "
            "one. Install the gateway again."
        )
    return heads.pop()
