"""The examination of a running gateway: its database, books, keys, storage and hosts.

`gateway doctor` prints it, and the console shows it to operators.
"""

from collections.abc import Callable

from gateway.billing import ledger
from gateway.bootstrap import Gateway
from gateway.catalog.vendors import VENDORS
from gateway.config import Settings
from gateway.db.connection_limit import connection_limit
from gateway.db.engine import DatabaseUnavailable
from gateway.db.pools import Beside, connections_of_worker
from gateway.errors import NotFound, StorageFailed
from gateway.library.storage import new_image_id, open_store
from gateway.mcp_server.prompt_templates import load_templates
from gateway.money import format_usd_short
from gateway.oidc.identity_provider import IdentityProvider
from gateway.oidc.signing_keys import KeysNotFetched
from gateway.providers.base import Reason
from gateway.vault import key_status

Note = Callable[[str, str, str], None]
"""Takes a finding: its subject, its state (ok, none, open, waiting, wrong) and details."""


async def examine(gateway: Gateway, note: Note, *, ledger_seconds: int | None = None) -> None:
    """Note every finding. `ledger_seconds`: the longest time for the check of the books."""
    settings, kind = gateway.settings, "external"
    if settings.uses_embedded_postgres:
        kind = f"{settings.data_dir.absolute()}: embedded"
    note("database", "ok", f"{kind} Postgres at revision {gateway.core.revision}")
    await _examine_connections(gateway, note)
    await _examine_ledger(gateway, note, ledger_seconds or ledger.INVARIANT_SECONDS)
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


async def _examine_ledger(gateway: Gateway, note: Note, seconds: int) -> None:
    try:
        await _examine_books(gateway, note, seconds)
    except DatabaseUnavailable:
        if seconds >= ledger.INVARIANT_SECONDS:
            raise
        note(
            "ledger",
            "none",
            f"the check took longer than {seconds} s; `gateway ledger check` has no time limit",
        )
    await _examine_open_calls(gateway, note)


async def _examine_books(gateway: Gateway, note: Note, seconds: int) -> None:
    database = gateway.database.beside(Beside.OPERATORS_REPORTS)
    breaks = await ledger.new_breaks(database, remember=False, limit=20, timeout_seconds=seconds)
    if breaks is None:
        breaks = await ledger.invariant_breaks(database, limit=20, timeout_seconds=seconds)
    if breaks:
        note("ledger", "wrong", "; ".join(f"{found.what}: {found.id}" for found in breaks))
    else:
        note("ledger", "ok", "budgets, reservations and ledger agree")


async def _examine_open_calls(gateway: Gateway, note: Note) -> None:
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
