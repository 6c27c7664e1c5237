"""Commands that run and keep the gateway: serve, migrate, doctor, master-key."""

import asyncio
import errno
import importlib
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from gateway.billing import ledger
from gateway.bootstrap import (
    Core,
    Gateway,
    open_core,
    open_gateway,
)
from gateway.cli.output import (
    JsonOption,
    console,
    errors,
    guarded,
    invoker,
    print_json,
    refuse,
    run,
    show,
)
from gateway.config import Settings, export_to_workers, load_settings
from gateway.db.audit import Action, record
from gateway.errors import ConfigurationError, GatewayError
from gateway.images.storage import new_image_id, open_store
from gateway.main import create_app, spare_garbage_collector
from gateway.mcp_server.prompt_templates import load_templates
from gateway.telemetry import configure_logging
from gateway.tenancy.identity_provider import IdentityProvider
from gateway.tenancy.quickstart import quickstart_path, read_quickstart
from gateway.tenancy.signing_keys import KeysNotFetched
from gateway.tenancy.vault import (
    MasterKeys,
    new_master_key,
    rewrap_all,
    used_master_key_ids,
    write_key_file,
)

ROTATION_LOCK = 4_702_111_234_569
Note = Callable[[str, str, str], None]
master_key = typer.Typer(help="The key that wraps all others.", no_args_is_help=True)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    workers: Annotated[int, typer.Option(help="Processes.", min=1, max=64)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Run the server. Migrates first; prints keys and an example to begin with."""
    settings = guarded(load_settings)
    configure_logging(settings.log_level, settings.resolved_log_format)
    if (host, port) != ("127.0.0.1", 8000) and "public_url" not in settings.model_fields_set:
        shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 - compared only
        settings = settings.model_copy(update={"public_url": f"http://{shown}:{port}"})
    _refuse_unusable(host, port)
    if workers == 1:
        _serve_one(settings, host, port, as_json=as_json)
    else:
        _serve_many(settings, host, port, workers, as_json=as_json)


class _Server(uvicorn.Server):
    """Greets once it listens; drains as soon as it is told to stop, while clients still wait."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, greet: Callable[[], None]) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._greet = greet

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            spare_garbage_collector()
            self._greet()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        seconds = self._gateway.settings.drain_seconds
        draining = asyncio.create_task(self._gateway.pipeline.drain(seconds))
        await super().shutdown(sockets)
        await draining


def _serve_one(settings: Settings, host: str, port: int, *, as_json: bool) -> None:
    async def serve_until_stopped() -> None:
        async with open_gateway(settings) as gateway:
            config = _uvicorn_config(create_app(settings, gateway), settings, host, port)
            greet = partial(_greet, gateway.core, as_json=as_json)
            await _Server(config, gateway, greet).serve()

    # uvicorn raises the signal that stopped it once more; by then the drain must still follow.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        guarded(lambda: runner.run(serve_until_stopped()))


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """The faster loop where there is one for this system."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _serve_many(settings: Settings, host: str, port: int, workers: int, *, as_json: bool) -> None:
    """The parent migrates, greets, and keeps the embedded Postgres while the workers serve."""
    export_to_workers(GATEWAY_PUBLIC_URL=settings.public_url)

    async def serve_until_stopped() -> None:
        load_templates(settings.prompts_dir)  # a mistake is said here, not by each worker
        async with open_core(settings) as core:
            _greet(core, as_json=as_json, workers=workers)
            with _shared_metrics():
                config = _uvicorn_config(
                    "gateway.main:worker_app", settings, host, port, workers=workers
                )
                # It blocks this thread, which alone may handle signals; nothing else needs it.
                Multiprocess(config, sockets=[config.bind_socket()]).run()

    guarded(lambda: asyncio.run(serve_until_stopped()))


@contextmanager
def _shared_metrics() -> Iterator[None]:
    """Let the workers' metrics be read as one."""
    folder = tempfile.mkdtemp(prefix="image-gateway-metrics-")
    export_to_workers(PROMETHEUS_MULTIPROC_DIR=folder)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _uvicorn_config(
    app: FastAPI | str, settings: Settings, host: str, port: int, *, workers: int = 1
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        workers=workers,
        factory=isinstance(app, str),
        log_config=None,
        access_log=False,
        server_header=False,
        # Longer than the drain, so that every client hears how its call ended.
        timeout_graceful_shutdown=int(settings.drain_seconds + settings.settle_wait_seconds) + 2,
    )


def _refuse_unusable(host: str, port: int) -> None:
    """Say what is wrong with an address before anything is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                refuse(f"Port {port} on {host} is in use. Choose another with --port.")
            refuse(f"This machine cannot listen on {host}, port {port}: {error.strerror}.")


def _greet(core: Core, *, as_json: bool, workers: int = 1) -> None:
    """Say where the gateway is and how to use it, with the quick start's keys where it has any."""
    base_url = core.settings.public_url.rstrip("/")
    keys = read_quickstart(core.settings)
    if as_json:
        if core.new_admin_key is not None:
            keys["admin_key"] = core.new_admin_key.reveal()
        print_json({**keys, "event": "ready", "base_url": base_url, "docs": f"{base_url}/docs"})
        return
    state = "is ready" if workers == 1 else f"starts {workers} workers"
    console.print(f"\nImage Gateway {state} at {base_url}\n", style="bold")
    for name in ("test_key", "live_key"):
        if name in keys:
            console.print(f"  {name.replace('_', ' '):10} {keys[name]}")
    if core.new_admin_key is not None:
        console.print(f"  admin key  {core.new_admin_key.reveal()}  (shown this once)")
    if keys:
        console.print(f"  They stand in {quickstart_path(core.settings)}\n")
        console.print("Make an image with the test key; it costs nothing:\n")
        console.print(_curl_example(base_url, keys["test_key"]))
        console.print(f"\nThen see what it would have cost:   {_program()} usage\n")
    if core.settings.openai_api_key is None:
        console.print(
            "Live keys need an OpenAI key: set OPENAI_API_KEY, or store a tenant's own with\n"
            f"`{_program()} credentials set --tenant default --provider openai`."
        )
    console.print(f"\nAPI documentation   {base_url}/docs\nMCP endpoint        {base_url}/mcp\n")


def _program() -> str:
    """How this command can be called from here."""
    path = Path(sys.argv[0])
    if not path.is_absolute() or path.name == "__main__.py":
        return "gateway" if path.name == "__main__.py" else str(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else "gateway"


def _curl_example(base_url: str, key: str) -> str:
    body = '{"prompt": "A lighthouse at dawn", "quality": "low"}'
    return (
        f"  curl -s {base_url}/v1/images/generations \\\n"
        f"    -H 'Authorization: Bearer {key}' \\\n"
        "    -H 'Content-Type: application/json' \\\n"
        f"    -d '{body}' \\\n"
        "    | python3 -c 'import base64,json,sys; "
        'open("lighthouse.png","wb").write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))\''
    )


def migrate(as_json: JsonOption = False) -> None:
    """Bring the database to the newest schema; several at once wait for each other."""

    async def work(core: Core) -> str:
        return core.revision

    revision = run(work)
    if as_json:
        print_json({"revision": revision})
    else:
        console.print(f"The database is at revision {revision}.")


def doctor(as_json: JsonOption = False) -> None:
    """Check configuration, database, storage and keys; say what to mend."""
    checks: list[dict[str, object]] = []

    def note(what: str, state: str, detail: str) -> None:
        checks.append({"check": what, "state": state, "detail": detail})

    try:
        settings = load_settings()
        configure_logging("WARNING", "console")
        note("configuration", "ok", "the environment can be used")
        asyncio.run(_examine(settings, note))
    except (ConfigurationError, GatewayError) as error:
        # The first thing that cannot work ends the examination: what follows builds on it.
        note("configuration" if not checks else "start", "wrong", str(error))
    show(checks, as_json=as_json)
    if any(check["state"] == "wrong" for check in checks):
        raise typer.Exit(1)


async def _examine(settings: Settings, note: Note) -> None:
    async with open_gateway(settings) as gateway:
        kind = "embedded" if settings.uses_embedded_postgres else "external"
        note("database", "ok", f"{kind} Postgres at revision {gateway.core.revision}")
        await _examine_ledger(gateway, note)
        keys = gateway.core.vault.master_keys
        note("master key", "ok", f"{', '.join(keys.ids)} from {keys.path or 'GATEWAY_MASTER_KEY'}")
        name = f"doctor/{new_image_id()}"
        store = open_store(settings.image_storage_url, settings.s3_options)
        await store.put(name, b"doctor")
        await store.get(name)
        await store.delete(name)
        note("storage", "ok", f"{settings.image_storage_url} takes, gives and deletes")
        if settings.openai_api_key is None:
            note("house key", "none", "OPENAI_API_KEY is not set: live calls need a tenant's own")
        else:
            note("house key", "ok", f"set, for {settings.openai_base_url} (not tried: calls cost)")
        _examine_limits(gateway, note)
        templates = load_templates(settings.prompts_dir)
        note("prompts", "ok", f"{len(templates)}, from {settings.prompts_dir or 'the package'}")
        if gateway.identity_provider is not None:
            await _examine_identity_provider(gateway.identity_provider, settings, note)


def _examine_limits(gateway: Gateway, note: Note) -> None:
    processes = gateway.limiter.processes
    if gateway.settings.redis_url is None:
        note("limits", "none", "GATEWAY_REDIS_URL is not set: each process counts for itself")
    elif processes is None:
        note("limits", "wrong", "GATEWAY_REDIS_URL does not answer, or refuses its password")
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
    breaks = await ledger.invariant_breaks(gateway.database, limit=20)
    if breaks:
        note("ledger", "wrong", "; ".join(f"{found.what}: {found.id}" for found in breaks))
    else:
        note("ledger", "ok", "budgets, reservations and ledger agree")


@master_key.command("rotate")
def rotate_master_key(
    prune: Annotated[
        bool, typer.Option("--prune", help="Afterwards remove keys that nothing uses any more.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Wrap every data key under a new master key while the gateway serves.

    With a key file: adds a new key to it and re-wraps; run again with --prune after every server
    has picked it up (a minute) to remove old keys. With GATEWAY_MASTER_KEY: set it to
    `new,old` on every server first, then run this, then remove the old one.
    """

    async def work(core: Core) -> dict[str, object]:
        # One rotation at a time: two would overwrite each other's keys in the file.
        async with core.database.exclusive(ROTATION_LOCK):
            return await _rotate(core, prune=prune)

    result = run(work)
    if as_json:
        print_json(result)
    else:
        console.print(
            f"Master key {result['master_key']} wraps everything "
            f"({result['rewrapped']} re-wrapped)."
        )
        if result["removed"]:
            console.print(f"Removed: {result['removed']}")


async def _rotate(core: Core, *, prune: bool) -> dict[str, object]:
    keys = core.vault.master_keys
    keys.wrapping()  # reads the file again, should another rotation have changed it
    removed: list[str] = []
    if prune:
        removed = await _prune(core, keys)
    elif keys.path is not None:
        _add_key(keys, keys.path)
    with errors.status("Re-wrapping data keys …"):
        count = await rewrap_all(core.database, keys)
    done = {"rewrapped": count, "removed": removed}
    key_id = keys.wrapping()[0]
    async with core.database.operator(by=invoker()) as session:
        await record(
            session, Action.MASTER_KEY_ROTATED, tenant_id=None, object_id=key_id, after=done
        )
    return {"master_key": key_id, **done}


def _add_key(keys: MasterKeys, path: Path) -> None:
    write_key_file(path, [new_master_key(), *(keys.opening(key_id) for key_id in keys.ids)])
    keys.wrapping()


async def _prune(core: Core, keys: MasterKeys) -> list[str]:
    if keys.path is None:
        raise ConfigurationError("GATEWAY_MASTER_KEY is yours to edit; --prune edits a key file.")
    used = await used_master_key_ids(core.database) | {keys.wrapping()[0]}
    removed = [key_id for key_id in keys.ids if key_id not in used]
    write_key_file(keys.path, [keys.opening(key_id) for key_id in keys.ids if key_id in used])
    return removed
