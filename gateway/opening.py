"""Open the core: start or find Postgres, migrate its schema, open the vault."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import date

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from gateway.billing import prices
from gateway.catalog.loading import utc_today
from gateway.catalog.opening import open_catalog
from gateway.config import Settings
from gateway.core import Core
from gateway.db.addresses import database_url
from gateway.db.embedded import DATABASE_NAME, EmbeddedPostgres, prepare_data_dir
from gateway.db.engine import APP_ROLE, Database
from gateway.db.migrate import ADVISORY_LOCK, ensure_database, migrate
from gateway.errors import ConfigurationError, Conflict, InvalidRequest
from gateway.generation.parameters import check_defaults
from gateway.redaction import redact
from gateway.tenancy import quickstart
from gateway.vault.gateway_secrets import open_secrets
from gateway.vault.sealing import MasterKeys, Vault
from gateway.webhooks.sealing import Sealing


@asynccontextmanager
async def open_core(
    settings: Settings, *, today: Callable[[], date] = utc_today
) -> AsyncIterator[Core]:
    """Start or find Postgres, migrate it, open the vault. `today` decides which models are retired.

    Raises:
        ConfigurationError: a part cannot start; the message names the setting to change.
    """
    async with AsyncExitStack() as stack:
        master_keys = _master_keys(settings)
        url, revision = await _prepare_database(settings, stack)
        database = Database(
            url,
            pool_size=settings.database_pool_size,
            connect_timeout_seconds=settings.admission_seconds,
        )
        stack.push_async_callback(database.close)
        vault = Vault(master_keys)
        catalog = open_catalog(settings, today)
        check_defaults(settings.request_defaults, catalog.models[settings.default_model])
        async with database.operator() as session:
            await session.execute(
                text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK + 1}
            )
            secrets = await open_secrets(session, vault)
            await prices.seed(session, catalog.models.values())
            try:
                await prices.enforce(session, catalog.declaration.prices)
            except (Conflict, InvalidRequest) as error:
                raise ConfigurationError(f"{settings.models_file}: {error}") from None
            new_admin_key = await quickstart.make_first_keys(session, settings, secrets)
        yield Core(
            settings=settings,
            database=database,
            vault=vault,
            catalog=catalog,
            secrets=secrets,
            webhook_sealing=Sealing(vault, secrets),
            revision=revision,
            new_admin_key=new_admin_key,
        )


def _master_keys(settings: Settings) -> MasterKeys:
    if settings.master_key is not None:
        return MasterKeys(settings.master_key.get_secret_value(), None)
    if settings.master_key_file is not None:
        return MasterKeys(None, settings.master_key_file)
    prepare_data_dir(settings.data_dir)
    return MasterKeys.from_new_file(settings.resolved_master_key_file)


async def _prepare_database(settings: Settings, stack: AsyncExitStack) -> tuple[str, str]:
    """Return the serving address and the schema's revision."""
    if settings.database_url is not None:
        serving = settings.database_url.get_secret_value()
        owner = settings.migration_database_url or settings.database_url
        try:
            revision = await migrate(database_url(owner.get_secret_value()))
        except (OSError, SQLAlchemyError, asyncpg.PostgresError) as error:
            raise ConfigurationError(
                "The database of GATEWAY_DATABASE_URL cannot be used "
                f"({type(error).__name__}: {_first_line(error)}). Check that it is "
                "running, that address, user and password are right, and that the user may create "
                "tables and a role."
            ) from error
        return serving, revision
    embedded = EmbeddedPostgres(settings.data_dir)
    stack.push_async_callback(embedded.close)
    await ensure_database(embedded.owner_url("postgres"), DATABASE_NAME)
    revision = await migrate(embedded.owner_url(), login_role=True)
    embedded.supervise()
    return embedded.serving_url(APP_ROLE).render_as_string(hide_password=False), revision


def _first_line(error: Exception) -> str:
    """The first line of Postgres's message, without statement and parameters."""
    return redact(str(getattr(error, "orig", None) or error)).splitlines()[0][:200]
