"""The newest revision among the migrations, read from their files.

Alembic takes longer to import than a command that only reads takes altogether.
"""

import re
from pathlib import Path

from gateway.errors import ConfigurationError

REVISION = re.compile(r'^revision\b[^=\n]*= *"([^"]+)"', re.MULTILINE)
DOWN_REVISION = re.compile(r'^down_revision\b[^=\n]*= *"([^"]+)"', re.MULTILINE)


def migrations_dir() -> Path:
    """Where the migrations are: in the wheel beside this package, in a checkout at its root."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def newest_revision() -> str:
    """The revision that no other one builds on.

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
