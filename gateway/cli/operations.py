"""Operational commands: migrate, doctor, maintain."""

import asyncio
from collections.abc import Callable, Sequence

import typer

from gateway.billing import ledger
from gateway.bootstrap import Gateway, open_gateway
from gateway.catalog.vendors import VENDORS
from gateway.cli.output import (
    JsonOption,
    console,
    guarded,
    print_json,
    run,
    show,
)
from gateway.config import Settings, load_settings
from gateway.core import Core
from gateway.db.connection_limit import connection_limit
from gateway.db.pools import connections_of_worker
from gateway.errors import ConfigurationError, GatewayError, NotFound, StorageFailed
from gateway.library.storage import new_image_id, open_store
from gateway.maintenance import Sweeper
from gateway.mcp_server.prompt_templates import load_templates
from gateway.money import format_usd_short
from gateway.oidc.identity_provider import IdentityProvider
from gateway.oidc.signing_keys import KeysNotFetched
from gateway.providers.base import Reason
from gateway.reading import open_reader
from gateway.telemetry import configure_logging
from gateway.vault import key_status

Note = Callable[[str, str, str], None]


def migrate(as_json: JsonOption = False) -> None:
    """Migrate the database to the newest schema; concurrent runs wait for each other."""

    async def work(core: Core) -> str:
        return core.revision

    revision = run(work)
    if as_json:
        print_json({"revision": revision})
    else:
        console.print(f"The database is at revision {revision}.")


def doctor(as_json: JsonOption = False) -> None:
    """Check configuration, database, storage and keys; report what to fix."""
    checks: list[dict[str, object]] = []

    def note(what: str, state: str, detail: str) -> None:
        checks.append({"check": what, "state": state, "detail": detail})

    try:
        settings = load_settings()
        configure_logging("WARNING", "console")
        note("configuration", "ok", "the environment is valid")
        asyncio.run(_examine(settings, note))
    except (ConfigurationError, GatewayError) as error:
        # The first failure ends the checks: later ones depend on it.
        note("configuration" if not checks else "start", "wrong", str(error))
    show(checks, as_json=as_json)
    if any(check["state"] == "wrong" for check in checks):
        raise typer.Exit(1)


def maintain(as_json: JsonOption = False) -> None:
    """Do the periodic work once; exit status 1 if the books are broken.

    Every running gateway does this work by itself. The command is for schedulers of one's own, and
    for what must be done now. Names each part on standard error as it begins.
    """

    async def work() -> Sequence[ledger.InvariantBreak]:
        settings = load_settings()
        configure_logging("WARNING", "console")
        async with open_reader(settings):
            pass  # refuses if there is no data to maintain
        async with open_gateway(settings) as gateway:
            return await Sweeper(gateway).run(lambda what: typer.echo(f"{what} …", err=True))

    found = guarded(lambda: asyncio.run(work()))
    if as_json:
        print_json({"breaks": found})
    else:
        rows: list[dict[str, object]] = [{"what": one.what, "id": one.id} for one in found]
        show(rows, as_json=False, empty="Everything is done; the books agree.")
    if found:
        raise typer.Exit(1)


async def _examine(settings: Settings, note: Note) -> None:
    async with open_reader(settings):
        pass  # refuses if there is no data to examine; opening a gateway would create it
    async with open_gateway(settings) as gateway:
        kind = "external"
        if settings.uses_embedded_postgres:
            kind = f"{settings.data_dir.absolute()}: embedded"
        note("database", "ok", f"{kind} Postgres at revision {gateway.core.revision}")
        await _examine_connections(gateway, note)
        await _examine_ledger(gateway, note)
        keys = gateway.core.vault.master_keys
        note("master key", "ok", f"{', '.join(keys.ids)} from {keys.path or 'GATEWAY_MASTER_KEY'}")
        await _examine_secrets(gateway, note)
        await _examine_store(gateway, note)
        await _examine_house_keys(gateway, note)
        await _examine_hosts(gateway, note)
        _examine_limits(gateway, note)
        templates = load_templates(settings.prompts_dir)
        note("prompts", "ok", f"{len(templates)}, from {settings.prompts_dir or 'the package'}")
        if gateway.identity_provider is not None:
            await _examine_identity_provider(gateway.identity_provider, settings, note)


async def _examine_connections(gateway: Gateway, note: Note) -> None:
    """Compare the connections that all workers may open with those that Postgres admits."""
    workers = gateway.settings.workers
    each = connections_of_worker(gateway.settings.database_pool_size)
    async with gateway.database.operator() as session:
        admitted = await connection_limit(session)
    said = (
        f"at most {each} for each worker, {workers * each} for GATEWAY_WORKERS={workers}; "
        f"Postgres admits {admitted}"
    )
    if workers * each > admitted:
        advice = "raise its max_connections, or lower GATEWAY_WORKERS or GATEWAY_DATABASE_POOL_SIZE"
        note("connections", "wrong", f"{said}: {advice}")
    else:
        note("connections", "ok", said)


async def _examine_house_keys(gateway: Gateway, note: Note) -> None:
    """Compare each vendor's own list of models, which is free, with the catalogue."""
    settings = gateway.settings
    for name, vendor in VENDORS.items():
        found = await gateway.lifetimes.compare(name)
        if found is None:
            advice = "is not set: live calls need a tenant's own key"
            note(f"{name} key", "none", f"{vendor.key_setting} {advice}")
            continue
        address = settings.provider_addresses[name]
        if found.failure is Reason.CREDENTIAL:
            note(f"{name} key", "wrong", f"{address} refuses {vendor.key_setting}")
        elif found.failure is not None:
            said = f"set, but {address} gives no list of models ({found.failure})"
            note(f"{name} key", "unknown", said)
        elif found.missing:
            said = f"model not listed by {address}: {', '.join(found.missing)}"
            note(f"{name} key", "missing", said)
        else:
            count = len(found.models)
            note(f"{name} key", "ok", f"{address} lists all {count} models of the catalogue")


async def _examine_hosts(gateway: Gateway, note: Note) -> None:
    """Ask the operator's own hosts if their models are ready; none is run."""
    for model in gateway.core.catalog.declaration.models.values():
        address = gateway.core.catalog.hosts[model.provider].base_url
        if await gateway.hosts.is_ready(model):
            note(model.id, "ok", f"ready at {address}")
        else:
            note(model.id, "waiting", f"not ready at {address}, or it cannot be reached")


async def _examine_store(gateway: Gateway, note: Note) -> None:
    """Test the image store, and report the paid images that wait for it."""
    settings = gateway.settings
    name = f"doctor/{new_image_id()}"
    store = open_store(settings.image_storage_url, settings.s3_options)
    waiting = await gateway.keeper.spool.stats()
    if waiting.images:
        note(
            "image spool",
            "waiting",
            f"{waiting.images} images of {waiting.size_bytes} bytes (at most "
            f"{settings.spool_max_bytes}) wait for the store, the oldest for "
            f"{waiting.oldest_seconds:.0f} s",
        )
    try:
        await store.put(name, b"doctor")
        await store.get(name)
        await store.delete(name)
    except (StorageFailed, NotFound) as error:
        note("storage", "wrong", f"{settings.image_storage_url}: {error}")
        return
    note("storage", "ok", f"{settings.image_storage_url} accepts, returns and deletes files")


async def _examine_secrets(gateway: Gateway, note: Note) -> None:
    """Report the number of valid versions; `gateway master-key status` shows each."""
    async with gateway.database.operator() as session:
        found = await key_status.read_status(session, gateway.core.vault.master_keys.ids)
    missing = [one.version for one in found if one.state == "missing"]
    beside = [
        f"{one.name} {one.version}: {one.state}"
        for one in found
        if one.state not in {"in use", "wraps"}
    ]
    if missing:
        note("keys at rest", "wrong", f"sealed with master keys not configured: {missing}")
    else:
        note("keys at rest", "ok", "; ".join(beside) or "only the newest versions are in use")


def _examine_limits(gateway: Gateway, note: Note) -> None:
    processes = gateway.limiter.processes
    if gateway.settings.redis_url is None:
        note("limits", "none", "GATEWAY_REDIS_URL is not set: each process counts separately")
    elif processes is None:
        note("limits", "wrong", f"Redis of GATEWAY_REDIS_URL: {gateway.limiter.trouble}")
    else:
        note("limits", "ok", f"counted in Redis for {processes - 1} other running processes")


async def _examine_identity_provider(
    provider: IdentityProvider, settings: Settings, note: Note
) -> None:
    try:
        count = await provider.examine()
    except KeysNotFetched as error:
        note("identity provider", "wrong", f"GATEWAY_OIDC_ISSUER: {error}")
        return
    note(
        "identity provider",
        "ok",
        f"{settings.oidc_issuer} has {count} key{'' if count == 1 else 's'}; "
        f"accepted audiences: {', '.join(settings.oidc_audiences)}",
    )


async def _examine_ledger(gateway: Gateway, note: Note) -> None:
    breaks = await ledger.new_breaks(gateway.database, remember=False, limit=20)
    if breaks is None:
        breaks = await ledger.invariant_breaks(gateway.database, limit=20)
    if breaks:
        note("ledger", "wrong", "; ".join(f"{found.what}: {found.id}" for found in breaks))
    else:
        note("ledger", "ok", "budgets, reservations and ledger agree")
    async with gateway.database.operator() as session:
        sums = await ledger.sum_open(session)
    doubts = [one for one in sums if one.livemode and one.count and one.state != "held"]
    note(
        "open calls",
        "open" if doubts else "ok",
        "; ".join(
            f"{one.count} {one.state}, {format_usd_short(one.amount_nano)} USD, the oldest of "
            f"{one.oldest:%Y-%m-%d}: `gateway reconcile list`"
            for one in doubts
        )
        or "the cost of every live call is known",
    )
