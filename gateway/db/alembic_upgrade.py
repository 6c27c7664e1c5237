"""The migrations by Alembic, which `gateway.db.migrate` imports when there are any to run."""

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from gateway.db.revisions import migrations_dir, newest_revision
from gateway.errors import ConfigurationError


def upgrade(connection: Connection) -> None:
    """Run the migrations that the database has not had yet.

    Raises:
        ConfigurationError: the database is at a revision that this release does not know.
    """
    config = Config()
    config.set_main_option("script_location", str(migrations_dir()))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigurationError(
            "The database is at a revision that this release does not know; the newest that it "
            f"knows is {newest_revision()}. Start the release that migrated the database, or a "
            "newer one."
        ) from error
