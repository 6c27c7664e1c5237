"""The embedded Postgres: a server in the data directory, on a Unix socket.

The socket is in the cluster's directory; both have mode 0700. The server authenticates by the
kernel's peer credentials (`peer`), and admits the gateway's own user and root.
"""

import asyncio
import fcntl
import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships without types
from sqlalchemy import URL

from gateway.background import repeat
from gateway.db import postgres_programs as programs
from gateway.db.postgres_account import own_account, serving_account
from gateway.db.postgres_cluster import (
    Postmaster,
    forget_reused_pid,
    initialise,
    last_complaint,
    read_postmaster,
    spawn,
    stop,
    write_access_rules,
)
from gateway.errors import ConfigurationError

DATABASE_NAME = "image_gateway"
SOCKET_DIR = "."
"""Relative to the cluster, so that the path is never too long. It also distinguishes a server
with these access rules from one of an earlier version."""
SOCKET = ".s.PGSQL.5432"
MAX_SOCKET_PATH_BYTES = 103
"""Size of `sun_path` (`unix(7)`): 104 with a closing NUL on macOS, 108 on Linux."""
START_SECONDS = 120
POLL_SECONDS = 0.01
SAID_CHARACTERS = 500
log = logging.getLogger(__name__)
"""The standard library's: commands that read start faster without structlog."""


class EmbeddedPostgres:
    """A shared handle on the server; the last process to close its handle stops the server."""

    def __init__(self, data_dir: Path) -> None:
        prepare_data_dir(data_dir)
        self._pgdata = data_dir.absolute() / "postgres"
        self._lock_file = data_dir.absolute() / ".postgres.lock"
        self._children: list[subprocess.Popen[bytes]] = []
        self._supervisor: asyncio.Task[None] | None = None
        with self._refusals(), _locked(self._lock_file), ExitStack() as opened:
            users = data_dir.absolute() / ".postgres.users"
            self._use = os.open(users, os.O_RDWR | os.O_CREAT, 0o600)
            opened.callback(os.close, self._use)
            # Held until this process closes the file or ends, even by a kill.
            fcntl.flock(self._use, fcntl.LOCK_SH)
            self._postmaster = self._find() or self._start()
            self._folder = os.open(self._pgdata, os.O_RDONLY | os.O_DIRECTORY)
            opened.pop_all()

    @property
    def pid(self) -> int:
        """The server's process id."""
        return int(self._postmaster.process.pid)

    def owner_url(self, database: str = DATABASE_NAME) -> URL:
        """Build the URL of `database` for the owner role (migrations)."""
        return URL.create(
            "postgresql+asyncpg",
            username="postgres",
            database=database,
            query={"host": self._reachable_folder()},
        )

    def serving_url(self, role: str) -> URL:
        """Build the URL of the gateway's database for the serving role."""
        return self.owner_url().set(username=role)

    def run_program(
        self, name: str, *arguments: str, source: Path | None = None, output: Path | None = None
    ) -> None:
        """Run one of Postgres' own programs as the owner role, on files as its streams.

        Raises:
            ConfigurationError: it failed; the message has its last words.
        """
        command = [
            str(programs.find_programs(own_account()) / name),
            *(f"--host={self._reachable_folder()}", "--username=postgres", "--no-password"),
            *arguments,
        ]
        with ExitStack() as stack:
            stdin = subprocess.DEVNULL if source is None else stack.enter_context(source.open("rb"))
            stdout = (
                subprocess.DEVNULL if output is None else stack.enter_context(output.open("xb"))
            )
            ended = subprocess.run(  # noqa: S603 - our own program
                command,
                check=False,
                cwd="/",
                env=programs.ENVIRONMENT,
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                pass_fds=[self._folder],
            )
        if ended.returncode:
            said = ended.stderr.decode(errors="replace").strip()[-SAID_CHARACTERS:]
            raise ConfigurationError(f"{name} failed: {said}")

    def ensure_running(self) -> None:
        """Restart the server if it has ended.

        Raises:
            ConfigurationError: it does not start.
        """
        with self._refusals(), _locked(self._lock_file):
            self._postmaster = self._find() or self._start()

    def supervise(self) -> None:
        """Restart the server whenever it ends while the gateway runs."""
        self._supervisor = asyncio.create_task(
            repeat("embedded-postgres", self._keep_running), name="embedded-postgres"
        )

    async def _keep_running(self) -> None:
        await asyncio.sleep(0.5)
        if self._postmaster.is_running():
            return
        log.warning("embedded_postgres_ended: starting it again")
        try:
            await asyncio.to_thread(self.ensure_running)
        except ConfigurationError:
            log.exception("embedded_postgres_did_not_start")

    async def close(self) -> None:
        """Close this process' handle."""
        if self._supervisor is not None:
            self._supervisor.cancel()
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """Close the handle without an event loop."""
        with _locked(self._lock_file):
            if self._is_only_user():
                stop(self._postmaster)
                for child in self._children:
                    child.wait()
            os.close(self._use)
            os.close(self._folder)

    def _is_only_user(self) -> bool:
        """Tell if no other handle is open; the caller holds the lock for opening and closing."""
        try:
            fcntl.flock(self._use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            fcntl.flock(self._use, fcntl.LOCK_SH)
        return True

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (OSError, subprocess.SubprocessError, psutil.Error) as error:
            raise ConfigurationError(
                f"The embedded Postgres in {self._pgdata} does not start "
                f"({type(error).__name__}: {error}). See its log, {self._pgdata / 'log'}, or set "
                "GATEWAY_DATABASE_URL to use another server."
            ) from error

    def _reachable_folder(self) -> str:
        """Return a path of the socket's directory that is short enough to connect to."""
        if len(os.fsencode(self._pgdata / SOCKET)) <= MAX_SOCKET_PATH_BYTES:
            return str(self._pgdata)
        through = programs.passed_path(self._pgdata, self._folder)
        if through == str(self._pgdata):
            longest = MAX_SOCKET_PATH_BYTES - len(f"/postgres/{SOCKET}")
            raise ConfigurationError(
                f"GATEWAY_DATA_DIR is too long for a socket in it: {self._pgdata.parent} has "
                f"{len(os.fsencode(self._pgdata.parent))} bytes; at most {longest} can be used."
            )
        return through

    def _find(self) -> Postmaster | None:
        """Find the running server; one of an earlier version is stopped first.

        Raises:
            ConfigurationError: a gateway of an earlier version still uses it.
        """
        found = read_postmaster(self._pgdata)
        if found is None or found.socket_dir == SOCKET_DIR:
            return found if found is None or found.is_ready else self._until_ready(found)
        handles = self._pgdata / ".handle_pids.json"
        with suppress(FileNotFoundError):
            for pid in json.loads(handles.read_text()):
                if pid != os.getpid() and _is_gateway(pid):
                    raise ConfigurationError(
                        f"A gateway of an earlier version (process {pid}) runs on the data "
                        f"directory {self._pgdata.parent}. Stop it first."
                    )
            handles.unlink()
        log.warning("embedded_postgres_of_earlier_version: starting it anew")
        stop(found)
        return None

    def _start(self) -> Postmaster:
        if not (self._pgdata / "PG_VERSION").exists():
            initialise(self._pgdata)
        version = (self._pgdata / "PG_VERSION").read_text().strip()
        if version != str(programs.VERSION):
            raise ConfigurationError(
                f"{self._pgdata} was created by Postgres {version}; this gateway includes "
                f"{programs.VERSION}. Move the data with pg_dump and GATEWAY_DATABASE_URL."
            )
        account = serving_account(self._pgdata)
        if self._is_only_user():
            forget_reused_pid(self._pgdata)
        folder = os.open(self._pgdata, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchmod(folder, 0o700)
            write_access_rules(folder, account)
            output = os.open(
                *("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600),
                dir_fd=folder,
            )
            try:
                command = programs.postgres_command(
                    programs.find_programs(account),
                    programs.passed_path(self._pgdata, folder),
                    SOCKET_DIR,
                )
                child = spawn(command, account, folder, output)
            finally:
                os.close(output)
        finally:
            os.close(folder)
        # Kept, so that the exit is noticed and reaped.
        self._children = [one for one in self._children if one.poll() is None] + [child]
        return self._until_ready(Postmaster(psutil.Process(child.pid), SOCKET_DIR, is_ready=False))

    def _until_ready(self, starting: Postmaster) -> Postmaster:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            found = read_postmaster(self._pgdata)
            if found is not None and found.is_ready and found.process == starting.process:
                return found
            if not starting.is_running():
                raise ConfigurationError(
                    f"The embedded Postgres in {self._pgdata} does not start: "
                    f"{last_complaint(self._pgdata)} See its log, {self._pgdata / 'log'}, or set "
                    "GATEWAY_DATABASE_URL to use another server."
                )
            time.sleep(POLL_SECONDS)
        raise ConfigurationError(
            f"The embedded Postgres in {self._pgdata} is not ready after {START_SECONDS} seconds. "
            f"See its log, {self._pgdata / 'log'}."
        )


def has_cluster(data_dir: Path) -> bool:
    """Tell if a gateway has been started on this data directory."""
    return (data_dir / "postgres/PG_VERSION").exists()


def prepare_data_dir(data_dir: Path) -> None:
    """Create the data directory with mode 0700; the mode of an existing one is kept.

    Raises:
        ConfigurationError: it cannot be created.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The data directory {data_dir} cannot be created: {error.strerror}. "
            "Set GATEWAY_DATA_DIR to a writable place."
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock for finding, starting and stopping servers."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_gateway(pid: int) -> bool:
    try:
        return any("gateway" in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False
