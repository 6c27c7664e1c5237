"""Open the database of an existing gateway for read-only commands; create nothing."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg

from gateway.config import Settings
from gateway.core import Reader
from gateway.db import companions
from gateway.db.embedded import EmbeddedPostgres, has_cluster
from gateway.db.engine import APP_ROLE, Database, DatabaseUnavailable
from gateway.db.revisions import newest_revision
from gateway.errors import ConfigurationError

POOL_SIZE = 2
NOTHING_THERE = (
    asyncpg.InvalidCatalogNameError,  # no such database
    asyncpg.InvalidAuthorizationSpecificationError,  # no such role
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedObjectError,
)


@asynccontextmanager
async def open_reader(settings: Settings) -> AsyncIterator[Reader]:
    """Open a gateway's database; every transaction in it is read-only.

    Raises:
        ConfigurationError: there is no gateway data, or its schema belongs to another release.
    """
    async with AsyncExitStack() as stack:
        if settings.database_url is None:
            if not has_cluster(settings.data_dir):
                raise _no_data(settings)
            embedded = EmbeddedPostgres(settings.data_dir)
            stack.push_async_callback(embedded.close)
            url = embedded.serving_url(APP_ROLE).render_as_string(hide_password=False)
        else:
            url = settings.database_url.get_secret_value()
        database = Database(
            url,
            pool_size=POOL_SIZE,
            connect_timeout_seconds=settings.admission_seconds,
            read_only=True,
        )
        stack.push_async_callback(database.close)
        await _check_revision(settings, database)
        yield Reader(settings, database)


async def _check_revision(settings: Settings, database: Database) -> None:
    try:
        connection = await database.connect()
        try:
            found = await connection.fetchval("SELECT version_num FROM alembic_version")
            note = await connection.fetchval(companions.READ_NOTE)
        finally:
            await connection.close()
    except NOTHING_THERE as error:
        raise _no_data(settings) from error
    except DatabaseUnavailable as error:
        if isinstance(error.__cause__, NOTHING_THERE):
            raise _no_data(settings) from error
        raise ConfigurationError(
            f"The database {_place(settings)} cannot be reached "
            f"({type(error.__cause__).__name__}). Is it running, and are address, user and "
            "password right?"
        ) from error
    is_companion = companions.is_newer(note) and companions.may_serve(note)
    if found != newest_revision() and not is_companion:
        raise ConfigurationError(
            f"The database {_place(settings)} is at revision {found}; this release of the gateway "
            f"reads {newest_revision()}. Run `gateway migrate`, or use the release that created it."
        )


def _no_data(settings: Settings) -> ConfigurationError:
    return ConfigurationError(
        f"No gateway data {_place(settings)}. `gateway serve` creates it; set another location "
        "with GATEWAY_DATA_DIR or GATEWAY_DATABASE_URL."
    )


def _place(settings: Settings) -> str:
    if settings.database_url is None:
        return f"in {settings.data_dir}"
    return "in the database of GATEWAY_DATABASE_URL"
