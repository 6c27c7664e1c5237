"""`gateway serve`: one process, or several workers on one port, and the start-up message."""

import asyncio
import errno
import importlib
import math
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated

import psutil  # type: ignore[import-untyped]  # ships without types
import typer
import uvicorn
from fastapi import FastAPI

from gateway.bootstrap import Gateway, open_gateway
from gateway.cli.models_copy import ModelsCopy
from gateway.cli.output import JsonOption, console, guarded, invoker, print_json, refuse
from gateway.cli.workers import Supervisor
from gateway.config import Settings, export_to_workers, load_settings
from gateway.core import Core
from gateway.domain import SecretText
from gateway.errors import ConfigurationError
from gateway.identity.links import make_link
from gateway.logs import configure_logging
from gateway.main import create_app, drain, drain_seconds, leave, spare_garbage_collector
from gateway.mcp_server.prompt_templates import load_templates
from gateway.opening import open_core
from gateway.tenancy.quickstart import read_quickstart
from gateway.web.connections.bounds import ConnectionBounds, raise_descriptor_limit
from gateway.web.connections.protocol import BoundedConfig, BoundedProtocol
from gateway.web.connections.tls import Certificate, read_or_keep
from gateway.web.traces import check_traces

ACCEPTED_PER_TURN = 16
SIGNALLED = 128
"""Exit status of a process ended by a signal, as shells report it, minus the signal's number."""
WORKER_SILENCE_SECONDS = 60
"""A worker that does not answer its supervisor within this time is replaced. Python takes seconds
to start, on a busy machine many: a shorter time would kill each replacement in turn."""


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. Default: GATEWAY_HOST, or 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port to listen on. Default: GATEWAY_PORT, PORT, or 8000.", min=1, max=65535
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes. Default: GATEWAY_WORKERS, or 1.", min=1, max=64)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the server. Migrates first; on a terminal, prints keys and an example."""
    settings = guarded(load_settings)
    host, port = host or settings.host, port or settings.port
    settings = settings.model_copy(update={"workers": workers or settings.workers})
    configure_logging(settings.log_level, settings.resolved_log_format)
    if "public_url" not in settings.model_fields_set:
        shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 - compared only
        scheme = "http" if settings.tls_files is None else "https"
        settings = settings.model_copy(update={"public_url": f"{scheme}://{shown}:{port}"})
    if settings.workers > 1 and settings.mcp_sse:
        refuse(
            f"GATEWAY_MCP_SSE needs one process, and {settings.workers} workers were requested: a "
            "session lives in the process that holds its stream. Use --workers 1, or disable it."
        )
    _refuse_unusable(host, port)
    if settings.tls_files is not None:
        guarded(partial(Certificate, *settings.tls_files))
    guarded(partial(check_traces, settings))
    raise_descriptor_limit()
    if settings.workers == 1:
        _serve_one(settings, host, port, as_json=as_json)
    else:
        _serve_many(settings, host, port, as_json=as_json)


class _Server(uvicorn.Server):
    """A server that prints the greeting once it listens, and drains while clients still wait."""

    def __init__(
        self, config: BoundedConfig, gateway: Gateway, greet: Callable[[], None], start: "_Start"
    ) -> None:
        super().__init__(config)
        self._start = start
        self._gateway = gateway
        self._greet = greet
        self._loop = asyncio.get_running_loop()
        self._reloads: set[asyncio.Task[bool]] = set()
        self._bounded_config = config

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        stop = partial(super().handle_exit, sig, frame)
        self._loop.call_soon_threadsafe(leave, self._gateway, sig, stop)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._start.over()  # from here on this server handles signals
        await super().startup(sockets)
        if self.started:
            self._follow_files()
            spare_garbage_collector()
            self._greet()

    def _follow_files(self) -> None:
        """Read the models file and the certificate again at SIGHUP, where there is this signal."""
        if hasattr(signal, "SIGHUP"):
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _reload(self) -> None:
        if self._bounded_config.certificate is not None:
            read_or_keep(self._bounded_config.certificate.reload)
        task = self._loop.create_task(self._gateway.hosts.reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        listeners = sockets or []  # duplicates of one
        pending = [connection for one in listeners[:1] for connection in _accept_pending(one)]
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()
        opening = (self._loop.connect_accepted_socket(self._make_protocol, one) for one in pending)
        await asyncio.gather(*opening, return_exceptions=True)
        draining = asyncio.create_task(drain(self._gateway))
        await super().shutdown(sockets)
        await draining

    def _make_protocol(self) -> asyncio.Protocol:
        config = self._bounded_config
        return BoundedProtocol(
            config, server_state=self.server_state, app_state=self.lifespan.state, _loop=self._loop
        )


def _accept_pending(listener: socket.socket) -> list[socket.socket]:
    """Accept the connections that wait in the kernel, which would reset them with the listener."""
    accepted: list[socket.socket] = []
    while True:
        try:
            connection, _ = listener.accept()
        except ConnectionAbortedError:
            continue
        except OSError:  # none is left (BlockingIOError), or there are no more descriptors
            return accepted
        connection.setblocking(False)
        accepted.append(connection)


class _Start:
    """The start-up phase: SIGINT and SIGTERM cancel its task, which closes its resources."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(self._loop)
        self._is_over = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    async def over(self) -> None:
        """Leave signals to the server.

        The server raises the signal that stopped it again, while the drain must still follow; that
        repetition is ignored.
        """
        await asyncio.sleep(0)  # a signal just received ends the start-up here, not later
        self._is_over = True

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if not self._is_over and self._task is not None:
            self._is_over = True
            self._loop.call_soon_threadsafe(self._task.cancel, number)


def _run(serving: Coroutine[object, object, None]) -> None:
    """Run the server to its end; a start-up ended by a signal is not an error."""
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        try:
            guarded(lambda: runner.run(serving))
        except asyncio.CancelledError as ended:
            sys.exit(SIGNALLED + (ended.args[0] if ended.args else signal.SIGTERM))


def _serve_one(settings: Settings, host: str, port: int, *, as_json: bool) -> None:
    async def serve_until_stopped() -> None:
        start = _Start()
        async with open_gateway(settings) as gateway:
            config = _uvicorn_config(create_app(settings, gateway), settings, host, port)
            link = await _console_link(gateway.core, as_json=as_json)
            greet = partial(_greet, gateway.core, as_json=as_json, link=link)
            server = _Server(config, gateway, greet, start)
            await server.serve(_listeners(config))

    _run(serve_until_stopped())


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """Create the fastest event loop available on this system."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _serve_many(settings: Settings, host: str, port: int, *, as_json: bool) -> None:
    """Migrate, greet, and keep the embedded Postgres in the parent while the workers serve."""
    export_to_workers(GATEWAY_PUBLIC_URL=settings.public_url, GATEWAY_WORKERS=str(settings.workers))

    async def serve_until_stopped() -> None:
        start = _Start()
        load_templates(settings.prompts_dir)  # an error is reported once here, not by each worker
        async with open_core(settings) as core:
            link = await _console_link(core, as_json=as_json)
            _greet(core, as_json=as_json, link=link)
            with _shared_metrics() as folder, ModelsCopy(settings) as models_copy:
                config = _uvicorn_config("gateway.cli:worker_app", settings, host, port)
                supervisor = Supervisor(config, _listeners(config), settings, models_copy, folder)
                await start.over()
                # It blocks the main thread, the only one that may handle signals.
                supervisor.run()
                if supervisor.has_failed:
                    raise ConfigurationError("A worker could not start. The log above says why.")

    _run(serve_until_stopped())


@contextmanager
def _shared_metrics() -> Iterator[Path]:
    """Combine the metrics of all workers in a folder."""
    folder = tempfile.mkdtemp(prefix="image-gateway-metrics-")
    export_to_workers(PROMETHEUS_MULTIPROC_DIR=folder)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _uvicorn_config(app: FastAPI | str, settings: Settings, host: str, port: int) -> BoundedConfig:
    return BoundedConfig(
        app,
        bounds=ConnectionBounds.of(settings),
        tls_files=settings.tls_files,
        host=host,
        port=port,
        workers=settings.workers,
        factory=isinstance(app, str),
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keepalive_seconds,
        timeout_worker_healthcheck=WORKER_SILENCE_SECONDS,
        # Longer than the drain, so that every client gets the result of its call.
        timeout_graceful_shutdown=math.ceil(drain_seconds(settings) + settings.settle_wait_seconds)
        + 2,
    )


def _listeners(config: uvicorn.Config) -> list[socket.socket]:
    """Duplicate one socket, so that the loop accepts several connections per iteration.

    The event loop accepts one connection per iteration and socket. Iterations of a busy process are
    long, and new clients would wait for seconds in the kernel's queue, where they cannot be
    refused.
    """
    listener = config.bind_socket()
    return [listener, *(listener.dup() for _ in range(ACCEPTED_PER_TURN - 1))]


def _refuse_unusable(host: str, port: int) -> None:
    """Refuse an address that cannot be used, before anything is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                refuse(
                    f"Port {port} on {host} is in use{_holder_of(port)}. "
                    "Stop it, or choose another with --port."
                )
            refuse(f"This machine cannot listen on {host}, port {port}: {error.strerror}.")


def _holder_of(port: int) -> str:
    """The program that listens on a port, for a message; empty if the system does not tell."""
    try:
        for connection in psutil.net_connections("tcp"):
            is_it = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if is_it and connection.pid is not None:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass  # macOS shows other users' sockets only to root
    return ""


async def _console_link(core: Core, *, as_json: bool) -> SecretText | None:
    """Make a sign-in link of the console, for a person at a terminal."""
    if as_json or not sys.stdout.isatty():
        return None
    async with core.database.operator(by=invoker()) as session:
        return await make_link(session, invoker(), core.settings)


def _greet(core: Core, *, as_json: bool, link: SecretText | None = None) -> None:
    """Print the gateway's address and, on a terminal, how to use it and the keys."""
    settings = core.settings
    base_url = settings.public_url.rstrip("/")
    keys = read_quickstart(settings)
    path = settings.quickstart_file if keys or core.new_admin_key is not None else None
    if as_json:
        event = {"event": "ready", "base_url": base_url, "docs": f"{base_url}/docs"}
        print_json({**event, "data_dir": settings.data_dir.absolute(), "quickstart": path})
        return
    workers = settings.workers
    state = "is ready" if workers == 1 else f"starts {workers} workers"
    console.print(f"\nImage Gateway {state} at {base_url}\n", style="bold")
    if not sys.stdout.isatty():
        if path is not None:
            console.print(f"  Its first keys are in {path}\n")
        return
    _show_keys(core, keys, path)
    if keys:
        console.print("Make an image with the test key, free of charge:\n")
        console.print(_curl_example(base_url, keys["test_key"]))
        usage = _command(settings, "usage")
        console.print(f"\nThen see what it would have cost:   {usage}\n")
    if not settings.house_keys:
        setting = _command(settings, "credentials set --tenant default --provider openai")
        console.print(
            "Live keys need an OpenAI key: set OPENAI_API_KEY, or store a tenant's own with\n"
            f"`{setting}`."
        )
    if link is not None:
        console.print(
            f"\nConsole (signs in once, within {settings.console_link_seconds // 60} minutes)"
        )
        console.print(f"  {link.reveal()}")
    console.print(f"\nAPI documentation   {base_url}/docs\nMCP endpoint        {base_url}/mcp\n")


def _show_keys(core: Core, keys: Mapping[str, str], path: Path | None) -> None:
    for name in ("test_key", "live_key"):
        if name in keys:
            console.print(f"  {name.replace('_', ' '):10} {keys[name]}")
    if core.new_admin_key is not None:
        console.print(f"  admin key  {core.new_admin_key.reveal()}")
    if path is not None:
        console.print(f"  They are in {path}\n")


def _command(settings: Settings, words: str) -> str:
    """A command that works on the same data when pasted into another shell."""
    is_named = "data_dir" in settings.model_fields_set and settings.uses_embedded_postgres
    place = (
        f"GATEWAY_DATA_DIR={shlex.quote(str(settings.data_dir.absolute()))} " if is_named else ""
    )
    return f"{place}{_program()} {words}"


def _program() -> str:
    """The shortest way to call this command from here."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return f"{_short(Path(sys.executable))} -m gateway"
    found = shutil.which(path.name)
    if found is not None and path.exists() and Path(found).samefile(path):
        return path.name
    return _short(path)


def _short(path: Path) -> str:
    """A path relative to the current folder, if it is inside it."""
    is_here = path.is_absolute() and path.is_relative_to(Path.cwd())
    return shlex.quote(str(path.relative_to(Path.cwd()) if is_here else path))


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
