"""Postgres servers that a test may kill, and a relay in front of one that can fail."""

import asyncio
import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships without types
from sqlalchemy import URL, make_url

from gateway.db.embedded import EmbeddedPostgres
from gateway.errors import ConfigurationError
from tests.harness import PostgresServer

START_TRIES = 100


class OwnPostgres:
    """A server that this test alone uses; `url` is a migrated database on it."""

    def __init__(self, folder: Path) -> None:
        self._embedded = EmbeddedPostgres(folder)
        self._pgdata = folder / "postgres"
        self.url = ""

    async def prepare(self) -> None:
        """Make the database."""
        address = self._embedded.owner_url("postgres").render_as_string(hide_password=False)
        server = PostgresServer(address)
        await server.prepare()
        self.url = await server.create()

    def kill(self) -> None:
        """Kill -9 of the server and everything it started; return when they are gone."""
        postmaster = psutil.Process(self._embedded.pid)
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=10)

    async def start(self) -> None:
        """Start it again; it recovers from its log."""
        for _ in range(START_TRIES):
            try:
                await asyncio.to_thread(self._embedded.ensure_running)
            except ConfigurationError:
                continue
            return
        raise AssertionError("Postgres did not start again")

    def copy_to(self, folder: Path) -> None:
        """Copy what a standby would have received until now; the server must have been killed."""
        folder.mkdir()
        _copy(self._pgdata, folder)

    def set_back_to(self, folder: Path) -> None:
        """Replace the server's data, which must not run, with such a copy."""
        for path in self._pgdata.iterdir():  # its folder stays: it is open
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        _copy(folder, self._pgdata)

    async def promote(self) -> None:
        """Start the killed server as a promoted standby: on a new timeline."""
        with (self._pgdata / "postgresql.auto.conf").open("a") as configuration:
            # Ready is then said of a primary alone.
            configuration.write("restore_command = 'false'\nhot_standby = off\n")
        (self._pgdata / "recovery.signal").touch()
        await self.start()

    async def close(self) -> None:
        """Stop it."""
        await self._embedded.close()


def _copy(source: Path, target: Path) -> None:
    """Copy a tree with owners and modes, on which Postgres insists."""
    subprocess.run(["/bin/cp", "-a", f"{source}/.", target], check=True)


@asynccontextmanager
async def own_postgres() -> AsyncIterator[OwnPostgres]:
    """A server in a directory of its own."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-outage-"))
    server = await asyncio.to_thread(OwnPostgres, folder)
    try:
        await server.prepare()
        yield server
    finally:
        await server.start()
        await server.close()
        shutil.rmtree(folder, ignore_errors=True)


class Relay:
    """A network between the gateway and Postgres.

    `mute_answers()` lets requests through and drops what Postgres says; `silence()` drops both
    ways, as a firewall does that forgot the connection. Both concern the connections of now; new
    ones work. `reset()` breaks the connections of now.
    """

    def __init__(self, url: str) -> None:
        self._upstream = make_url(url)
        self._server: asyncio.Server | None = None
        self._links: list[_Link] = []

    @property
    def url(self) -> str:
        """The database's address through the relay."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        through: URL = self._upstream.difference_update_query(["host"])
        return through.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

    def mute_answers(self) -> None:
        """Drop what Postgres answers on the connections of now."""
        for link in self._links:
            link.to_client = False

    def mute_answers_to(self, marker: bytes) -> None:
        """Drop what Postgres answers on a connection from the moment that `marker` is sent on it.

        Other statements, a key's look-up for instance, are answered as ever.
        """
        for link in self._links:
            link.marker = marker

    def silence(self) -> None:
        """Drop everything on the connections of now."""
        for link in self._links:
            link.to_client = link.to_server = False

    def reset(self) -> None:
        """Break the connections of now."""
        for link in self._links:
            link.abort()
        self._links.clear()

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def close(self) -> None:
        """Stop listening and break every connection."""
        assert self._server is not None
        self._server.close()
        self.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        folder = self._upstream.query.get("host")
        if isinstance(folder, str):
            path = f"{folder}/.s.PGSQL.{self._upstream.port or 5432}"
            upstream = await asyncio.open_unix_connection(path)
        else:
            upstream = await asyncio.open_connection(
                self._upstream.host, self._upstream.port or 5432
            )
        link = _Link((reader, writer), upstream)
        self._links.append(link)
        await link.run()


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    def __init__(self, client: Stream, server: Stream) -> None:
        self._client = client
        self._server = server
        self.to_client = self.to_server = True
        self.marker: bytes | None = None

    async def run(self) -> None:
        await asyncio.gather(self._pump_up(), self._pump_down())

    def abort(self) -> None:
        self._client[1].transport.abort()
        self._server[1].transport.abort()

    async def _pump_up(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._client[0].read(65536):
                if self.marker is not None and self.marker in data:
                    self.to_client = False
                if self.to_server:
                    self._server[1].write(data)
        self._server[1].close()

    async def _pump_down(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._server[0].read(65536):
                if self.to_client:
                    self._client[1].write(data)
        self._client[1].close()


@asynccontextmanager
async def relayed(url: str) -> AsyncIterator[Relay]:
    """A relay in front of a database, until the end of the block."""
    relay = Relay(url)
    await relay.open()
    try:
        yield relay
    finally:
        await relay.close()
