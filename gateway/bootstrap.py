"""Opens and closes everything that the gateway holds, in one place and in order."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from gateway.billing import prices
from gateway.billing.prices import Prices, PriceTable
from gateway.billing.reservations import Reservations
from gateway.config import Settings
from gateway.db.cache import Cache, ChangeListener, K, V
from gateway.db.embedded import DATABASE_NAME, EmbeddedPostgres, prepare_data_dir
from gateway.db.engine import (
    APP_ROLE,
    Database,
    OperatorSession,
    TenantSession,
    database_url,
)
from gateway.db.migrate import ADVISORY_LOCK, ensure_database, migrate
from gateway.domain import Caller, Operator, SecretText, new_id
from gateway.errors import ConfigurationError
from gateway.images.catalog import Catalog, load_catalog
from gateway.images.links import LinkSigner
from gateway.images.pipeline import Pipeline, PipelineLimits
from gateway.images.storage import ImageStore, open_store
from gateway.providers.base import ImageProvider
from gateway.providers.openai_images import OpenAIImages
from gateway.providers.sandbox import Sandbox
from gateway.telemetry import redact
from gateway.tenancy import api_keys, key_format, tenants
from gateway.tenancy.api_keys import ApiKeys
from gateway.tenancy.credentials import CredentialChoice, Credentials
from gateway.tenancy.vault import MasterKeys, Vault

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Core:
    """What every command needs: settings, database, vault, and the gateway's own secrets."""

    settings: Settings
    database: Database
    vault: Vault
    catalog: Catalog
    pepper: bytes = field(repr=False)
    link_key: bytes = field(repr=False)
    revision: str
    new_admin_key: SecretText | None


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything that serves requests."""

    core: Core
    api_keys: ApiKeys
    pipeline: Pipeline
    store: ImageStore
    links: LinkSigner

    @property
    def settings(self) -> Settings:
        """The settings it was opened with."""
        return self.core.settings

    @property
    def database(self) -> Database:
        """The pool of serving connections."""
        return self.core.database


@asynccontextmanager
async def open_core(settings: Settings) -> AsyncIterator[Core]:
    """Start or find Postgres, migrate it, open the vault.

    Raises:
        ConfigurationError: something cannot work; the message says what to mend.
    """
    async with AsyncExitStack() as stack:
        master_keys = _master_keys(settings)
        url, revision = await _prepare_database(settings, stack)
        database = Database(
            url,
            pool_size=settings.database_pool_size,
            connect_timeout_seconds=settings.admission_timeout_ms / 1000,
        )
        stack.push_async_callback(database.close)
        vault = Vault(master_keys)
        catalog = load_catalog()
        async with database.operator() as session:
            await session.execute(
                text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK + 1}
            )
            pepper = await vault.gateway_secret(session, "pepper")
            link_key = await vault.gateway_secret(session, "link_key")
            await prices.seed(session, catalog.models.values())
            new_admin_key = await _first_start(session, settings, pepper)
        yield Core(settings, database, vault, catalog, pepper, link_key, revision, new_admin_key)


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """Open everything that serves requests; close it in reverse order.

    Raises:
        ConfigurationError: something cannot work; the message says what to mend.
    """
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(open_core(settings))
        database = core.database
        callers: Cache[bytes, Caller | Operator] = _cache(settings)
        choices: Cache[tuple[UUID, UUID | None, str], CredentialChoice] = _cache(settings)
        tables: Cache[str, PriceTable] = _cache(settings)

        def clear(tag: str | None) -> None:
            for cache in (callers, choices, tables):
                cache.clear(tag)

        listener = ChangeListener(database, clear)
        listener.start()
        stack.push_async_callback(listener.close)
        reservations = Reservations(
            database,
            instance=new_id(),
            max_batch=settings.group_commit_max_batch,
            admission_timeout_ms=settings.admission_timeout_ms,
        )
        stack.push_async_callback(reservations.close)
        store = open_store(settings.image_storage_url)
        links = LinkSigner(core.link_key, settings.public_url.rstrip("/"))
        providers = _providers(settings)
        for provider in providers.values():
            stack.push_async_callback(provider.close)
        house = (
            {}
            if settings.openai_api_key is None
            else {"openai": SecretText(settings.openai_api_key.get_secret_value().strip())}
        )
        pipeline = Pipeline(
            prices=Prices(database, tables),
            credentials=Credentials(database, core.vault, house, choices),
            reservations=reservations,
            providers=providers,
            store=store,
            links=links,
            limits=PipelineLimits(
                max_concurrent_generations=settings.max_concurrent_generations,
                settle_wait_seconds=settings.settle_wait_seconds,
                hold_margin_seconds=settings.hold_margin_seconds,
                image_ttl_seconds=settings.image_ttl_seconds,
                read_timeout_seconds=settings.provider_read_timeout_seconds,
            ),
        )
        stack.push_async_callback(pipeline.drain, settings.drain_seconds)
        yield Gateway(core, ApiKeys(database, core.pepper, callers), pipeline, store, links)


def quickstart_path(settings: Settings) -> Path:
    """Where the first start writes the keys of the tenant `default`."""
    return settings.data_dir / "quickstart.json"


def read_quickstart(settings: Settings) -> dict[str, str]:
    """The quick start's keys and today's address; empty where there was no quick start.

    The file keeps the address of the latest start, so that commands find the gateway.
    """
    path = quickstart_path(settings)
    if not settings.uses_embedded_postgres or not path.exists():
        return {}
    content: dict[str, str] = json.loads(path.read_text())
    if content["base_url"] != settings.public_url:
        content["base_url"] = settings.public_url
        _write_quickstart(path, content)
    return content


def _cache(settings: Settings) -> Cache[K, V]:
    return Cache(
        ttl_seconds=settings.cache_ttl_seconds,
        max_entries=settings.cache_max_entries,
        load_seconds=settings.admission_timeout_ms / 1000,
    )


def _providers(settings: Settings) -> dict[str, ImageProvider]:
    return {
        "openai": OpenAIImages(
            base_url=settings.openai_base_url,
            connect_timeout_seconds=settings.provider_connect_timeout_seconds,
            read_timeout_seconds=settings.provider_read_timeout_seconds,
            max_connections=settings.provider_max_connections,
        ),
        "sandbox": Sandbox(),
    }


def _master_keys(settings: Settings) -> MasterKeys:
    if settings.master_key is not None:
        return MasterKeys(settings.master_key.get_secret_value(), None)
    if settings.master_key_file is not None:
        return MasterKeys(None, settings.master_key_file)
    prepare_data_dir(settings.data_dir)
    return MasterKeys.from_new_file(settings.resolved_master_key_file)


async def _prepare_database(settings: Settings, stack: AsyncExitStack) -> tuple[str, str]:
    """Returns the serving address and the schema's revision."""
    if settings.database_url is not None:
        serving = settings.database_url.get_secret_value()
        owner = settings.migration_database_url or settings.database_url
        try:
            revision = await migrate(database_url(owner.get_secret_value()))
        except (OSError, SQLAlchemyError, asyncpg.PostgresError) as error:
            raise ConfigurationError(
                "The database of GATEWAY_DATABASE_URL cannot be used "
                f"({type(error).__name__}: {_first_line(error)}). Is it running, are address, user "
                "and password right, and may the user create tables and a role?"
            ) from error
        return serving, revision
    embedded = EmbeddedPostgres(settings.data_dir)
    stack.push_async_callback(embedded.close)
    await ensure_database(embedded.owner_url("postgres"), DATABASE_NAME)
    revision = await migrate(embedded.owner_url(), login_role=True)
    embedded.supervise()
    return embedded.serving_url(APP_ROLE).render_as_string(hide_password=False), revision


def _first_line(error: Exception) -> str:
    """What Postgres says, without statement and parameters."""
    return redact(str(getattr(error, "orig", None) or error)).splitlines()[0][:200]


async def _first_start(
    session: OperatorSession, settings: Settings, pepper: bytes
) -> SecretText | None:
    """Make the admin key, and with the embedded Postgres a tenant to begin with.

    Returns the admin key where it was made here: it can be shown now and never again.
    """
    made = None
    if settings.admin_key is not None:
        admin_key = SecretText(settings.admin_key.get_secret_value().strip())
        if key_format.key_kind(admin_key.reveal()) != "admin":
            raise ConfigurationError(
                "GATEWAY_ADMIN_KEY does not have the form of an admin key (igw_admin_…). "
                "Leave it unset: the first start then makes one and shows it once."
            )
        await api_keys.add_operator_key(session, pepper=pepper, secret=admin_key)
    elif not await api_keys.has_operator_key(session):
        admin_key = made = key_format.new_key("admin")
        await api_keys.add_operator_key(session, pepper=pepper, secret=made)
    else:
        return None
    if settings.uses_embedded_postgres and not await tenants.list_all(session):
        quickstart = {"base_url": settings.public_url, "admin_key": admin_key.reveal()}
        quickstart |= await _default_tenant(session, pepper)
        _write_quickstart(quickstart_path(settings), quickstart)
    return made


async def _default_tenant(session: OperatorSession, pepper: bytes) -> dict[str, str]:
    tenant = await tenants.create(session, DEFAULT_TENANT)
    tenant_session = TenantSession(session)
    live = await api_keys.issue(tenant_session, tenant.id, pepper=pepper, livemode=True)
    test = await api_keys.issue(tenant_session, tenant.id, pepper=pepper, livemode=False)
    return {
        "tenant_id": str(tenant.id),
        "live_key": live.secret.reveal(),
        "test_key": test.secret.reveal(),
    }


def _write_quickstart(path: Path, content: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
