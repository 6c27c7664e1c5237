"""Open and close the gateway's resources, in one place and in order."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Any

from gateway.billing.opening import open_reservations
from gateway.billing.prices import CACHE_TAG, Prices, PriceTable
from gateway.billing.rerouting import Rerouting
from gateway.billing.reservations import Reservations
from gateway.billing.warming import Step, WarmUp
from gateway.catalog.loading import utc_today
from gateway.config import Settings
from gateway.core import Core
from gateway.db.cache import Cache, ChangeListener, K, V
from gateway.db.engine import Database
from gateway.db.pool_metrics import PoolMetrics
from gateway.db.pools import Beside, OpenMeter
from gateway.domain import new_id
from gateway.generation.credential_tests import CredentialTests
from gateway.generation.hosts import Hosts
from gateway.generation.idempotency import Replays
from gateway.generation.image_references import InputImageFetcher
from gateway.generation.intake import Intake
from gateway.generation.model_lifetimes import Lifetimes
from gateway.generation.opening import MAX_DOWNLOAD_BYTES, open_providers
from gateway.generation.pipeline import Pipeline
from gateway.generation.results import Results
from gateway.library.keeping import Keeper
from gateway.library.links import LinkSigner
from gateway.library.opening import open_decoder, open_finisher, open_keeper
from gateway.library.storage import ImageStore
from gateway.library.thumbnails import Thumbnails
from gateway.limits.enforcement import Limiter, open_limiter
from gateway.load.circuits import Circuits
from gateway.load.gate import Gate, GateLimits
from gateway.media.decoder import (
    Decoder,
)
from gateway.media.manifests import open_signer
from gateway.net.downloads import Downloads
from gateway.oidc.identity_provider import (
    IdentityProvider,
    TokenOwner,
    identity_provider_of,
)
from gateway.opening import open_core
from gateway.request_log.writer import RequestLog, open_request_log
from gateway.telemetry import cache_lookups_total
from gateway.tenancy.credentials import Credentials
from gateway.tenancy.key_lookup import CallerCaches, KeyLookup
from gateway.tenancy.refused_keys import RefusedKeys
from gateway.webhooks.dispatcher import Dispatcher, open_dispatcher

OPERATOR_KEY_SECONDS = 30.0
"""The accuracy of an admin key's `last_used_at`, which is written when its cache entry expires."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """The opened resources that serve requests."""

    core: Core
    warm_up: WarmUp
    api_keys: KeyLookup
    identity_provider: IdentityProvider | None
    pipeline: Pipeline
    gate: Gate
    limiter: Limiter
    store: ImageStore
    keeper: Keeper
    links: LinkSigner
    decoder: Decoder
    finisher: Decoder
    intake: Intake
    thumbnails: Thumbnails
    credential_tests: CredentialTests
    lifetimes: Lifetimes
    hosts: Hosts
    webhooks: Dispatcher
    request_log: RequestLog
    clear_caches: Callable[[str | None], None]
    """Drop the cache entries of a tenant (its id as text). Postgres announces a change to every
    gateway; the one that made it must not serve the old state until that announcement arrives."""
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when shutdown begins: /ready then answers 503, so that load balancers move on."""

    @property
    def settings(self) -> Settings:
        """The settings that the gateway was opened with."""
        return self.core.settings

    @property
    def database(self) -> Database:
        """The pool of connections for tenants' requests."""
        return self.core.database

    @property
    def operators_database(self) -> Database:
        """The pool of connections for operators' requests."""
        return self.core.database.beside(Beside.OPERATORS)


@asynccontextmanager
async def open_gateway(
    settings: Settings, *, today: Callable[[], date] = utc_today
) -> AsyncIterator[Gateway]:
    """Open the resources that serve requests; close them in reverse order.

    Raises:
        ConfigurationError: a part cannot start; the message names the setting to change.
    """
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(open_core(settings, today=today))
        (database := core.database).measure(_pool_metrics(settings))
        callers = _caller_caches(settings)
        tables: Cache[str, PriceTable] = _cache(settings, "prices")
        token_owners: Cache[tuple[str, str], TokenOwner] = _cache(settings, "token_owners")
        key_lookup = _key_lookup(stack, core, callers)
        caches = (callers.by_key, callers.operators, callers.credentials, tables, token_owners)
        clear = _clearer(core, key_lookup, *caches)
        await _listen(stack, database, clear)
        reservations, journal = await open_reservations(stack, settings, database)
        store = (keeper := open_keeper(settings, database, core.vault)).files
        links, webhooks = LinkSigner(core.secrets, settings.public_url.rstrip("/")), _webhooks(core)
        decoder, finisher, gate = open_decoder(settings), open_finisher(settings), _gate(settings)
        thumbnails, downloads = Thumbnails(store, decoder), _downloads(settings)
        request_log = open_request_log(settings, database)
        for held in (decoder, finisher, thumbnails, downloads, webhooks, keeper, request_log):
            stack.push_async_callback(held.close)
        opened = open_providers(
            stack, settings, core.catalog, database, partial(tables.clear, CACHE_TAG), today=today
        )
        credentials = Credentials(database, core.vault, opened.house, callers.credentials)
        limiter = await stack.enter_async_context(open_limiter(settings, process=new_id()))
        pipeline = Pipeline(
            catalog=core.catalog,
            prices=Prices(database, tables),
            credentials=credentials,
            reservations=reservations,
            rerouting=Rerouting(database, timeout_ms=settings.admission_timeout_ms),
            providers=opened.providers,
            results=_results(core, keeper, links, finisher),
            replays=_replays(core, reservations, store, links),
            gate=gate,
            circuits=Circuits(settings),
            limiter=limiter,
            journal=journal,
            settings=settings,
        )
        stack.push_async_callback(pipeline.drain, settings.drain_seconds)
        steps = (reservations.warm, key_lookup.warm, Prices(database, tables).load)
        yield Gateway(
            core=core,
            warm_up=await _warmed_up(stack, database, *steps),
            api_keys=key_lookup,
            identity_provider=_identity_provider(stack, settings, database, token_owners),
            pipeline=pipeline,
            gate=gate,
            limiter=limiter,
            store=store,
            keeper=keeper,
            links=links,
            decoder=decoder,
            finisher=finisher,
            intake=Intake(pipeline, _fetcher(core, store, links, downloads), decoder),
            thumbnails=thumbnails,
            credential_tests=CredentialTests(database, credentials, opened.vendors),
            lifetimes=opened.lifetimes,
            hosts=opened.hosts,
            webhooks=webhooks,
            request_log=request_log,
            clear_caches=clear,
        )


def _pool_metrics(settings: Settings) -> OpenMeter:
    return partial(PoolMetrics, is_traced=settings.traces_endpoint is not None)


async def _listen(
    stack: AsyncExitStack, database: Database, clear: Callable[[str | None], None]
) -> None:
    listener = ChangeListener(database, clear)
    stack.push_async_callback(listener.close)
    await listener.start()


async def _warmed_up(stack: AsyncExitStack, database: Database, *steps: Step) -> WarmUp:
    warm_up = WarmUp(database, database.warm, *steps)
    stack.push_async_callback(warm_up.close)
    await warm_up.run()
    return warm_up


def _key_lookup(stack: AsyncExitStack, core: Core, callers: CallerCaches) -> KeyLookup:
    refused_keys = RefusedKeys(
        core.database, max_delay_seconds=core.settings.refused_key_max_delay_seconds
    )
    refused_keys.start()
    core.secrets.start(core.database)
    stack.push_async_callback(refused_keys.close)
    stack.push_async_callback(core.secrets.close)
    seconds = core.settings.admission_seconds
    return KeyLookup(core.database, core.secrets, callers, refused_keys, seconds=seconds)


def _clearer(
    core: Core, key_lookup: KeyLookup, *caches: Cache[Any, Any]
) -> Callable[[str | None], None]:
    """Build the function that drops every cache entry of a tenant.

    Changing a tenant may mean deleting it, so its keys and secrets are dropped too.
    """

    def clear(tag: str | None) -> None:
        for cache in caches:
            cache.clear(tag)
        key_lookup.clear()
        core.vault.forget(tag)
        core.secrets.expire(tag)

    return clear


def _webhooks(core: Core) -> Dispatcher:
    background = core.database.beside(Beside.BACKGROUND)
    return open_dispatcher(core.settings, background, core.webhook_sealing)


def _replays(
    core: Core, reservations: Reservations, store: ImageStore, links: LinkSigner
) -> Replays:
    return Replays(
        core.database,
        reservations,
        store,
        links,
        core.catalog,
        image_ttl_seconds=core.settings.image_ttl_seconds,
        lookup_seconds=core.settings.admission_seconds,
    )


def _gate(settings: Settings) -> Gate:
    return Gate(
        "requests",
        GateLimits(
            most=settings.max_preparing_requests,
            most_of_one=max(1, settings.max_preparing_requests // 2),
            max_waiting=settings.max_waiting_requests,
            wait_seconds=settings.max_wait_seconds,
        ),
    )


def _fetcher(
    core: Core, store: ImageStore, links: LinkSigner, downloads: Downloads
) -> InputImageFetcher:
    return InputImageFetcher(
        database=core.database,
        store=store,
        links=links,
        downloads=downloads,
        settings=core.settings,
    )


def _caller_caches(settings: Settings) -> CallerCaches:
    return CallerCaches(
        _cache(settings, "api_keys"),
        _cache(settings, "admin_keys", ttl_seconds=OPERATOR_KEY_SECONDS),
        _cache(settings, "credentials"),
    )


def _cache(settings: Settings, name: str, *, ttl_seconds: float = math.inf) -> Cache[K, V]:
    return Cache(
        hit=cache_lookups_total.labels(name, "hit").inc,
        miss=cache_lookups_total.labels(name, "miss").inc,
        ttl_seconds=min(ttl_seconds, settings.cache_ttl_seconds),
        max_entries=settings.cache_max_entries,
        load_seconds=settings.admission_seconds,
    )


def _identity_provider(
    stack: AsyncExitStack,
    settings: Settings,
    database: Database,
    token_owners: Cache[tuple[str, str], TokenOwner],
) -> IdentityProvider | None:
    provider = identity_provider_of(settings, database, token_owners)
    if provider is not None:
        stack.push_async_callback(provider.close)
    return provider


def _results(core: Core, keeper: Keeper, links: LinkSigner, finisher: Decoder) -> Results:
    return Results(
        keeper,
        links,
        finisher,
        signer=open_signer(
            core.settings.c2pa_certificate_file,
            core.settings.c2pa_private_key_file,
            core.settings.c2pa_algorithm,
        ),
        prompt_key=core.secrets.prompt_key,
        image_ttl_seconds=core.settings.image_ttl_seconds,
        image_retention_seconds=core.settings.resolved_image_retention_seconds,
    )


def _downloads(settings: Settings) -> Downloads:
    return Downloads(
        max_bytes=MAX_DOWNLOAD_BYTES,
        total_seconds=settings.download_seconds,
        connect_seconds=settings.provider_connect_timeout_seconds,
    )
