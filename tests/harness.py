"""The base of the tests: a real Postgres, a gateway served on loopback, and keys to call it."""

import asyncio
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import threading
import tty
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import asyncpg
import httpx2
import openai
from fastapi import FastAPI
from fastapi.dependencies import models as fastapi_models
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from pydantic import SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from sqlalchemy import Row, make_url, text

from gateway.billing import budgets, ledger
from gateway.bootstrap import Gateway, open_gateway
from gateway.catalog.loading import utc_today
from gateway.config import Settings
from gateway.db.addresses import create_engine, database_url
from gateway.db.engine import TenantSession
from gateway.db.migrate import migrate
from gateway.main import create_app
from gateway.maintenance import Sweeper
from gateway.money import parse_usd
from gateway.tenancy import api_keys, tenants, users
from gateway.tenancy.api_keys import IssuedKey
from gateway.web.connections.bounds import ConnectionBounds
from tests.forks import KEPT, Forked, fork_gateway
from tests.serving import serving

LogAs = Callable[[str, Literal["console", "json"]], None]

MASTER_KEY = "bWFzdGVyLWtleS1jYW5hcnktMDEyMzQ1Njc4OWFiY2Q="
HOUSE_KEY = "sk-house-canary-7f3a9c1e5b2d"
GPT2 = "gpt-image-2"
TEMPLATE = "gateway_template"
TEMPLATE_READY = "GATEWAY_TEST_TEMPLATE_READY"
"""The variable that is set if the server at GATEWAY_TEST_DATABASE_URL has its template already."""


class PostgresServer:
    """A Postgres server that gives each test its own database, copied from a migrated template."""

    def __init__(self, owner_url: str) -> None:
        self._owner_url = database_url(owner_url)

    async def prepare(self) -> None:
        """Create the template database and migrate it."""
        await self._execute(
            f'DROP DATABASE IF EXISTS "{TEMPLATE}"', f'CREATE DATABASE "{TEMPLATE}"'
        )
        await migrate(self._owner_url.set(database=TEMPLATE))

    async def create(self, *, template: str = TEMPLATE) -> str:
        """Create a database from `template`; return its address, with the owner's role."""
        name = f"test_{secrets.token_hex(6)}"
        await self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
        return self._owner_url.set(database=name).render_as_string(hide_password=False)

    async def drop(self, url: str) -> None:
        """Remove a database, with the connections to it."""
        await self._execute(f'DROP DATABASE IF EXISTS "{make_url(url).database}" WITH (FORCE)')

    async def _execute(self, *statements: str) -> None:
        engine = create_engine(self._owner_url.set(database="postgres"), role=None)
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            for statement in statements:
                await connection.execute(text(statement))
        await engine.dispose()


TLS = ssl.create_default_context()
"""One context for every client: loading certificates anew took an eighth of the tests' time."""


class GivenSettings(Settings):
    """Settings from arguments alone."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def make_settings(url: str, data_dir: Path, **changes: Any) -> Settings:
    """Make the settings of a test's gateway. Nothing is read from the environment."""
    values: dict[str, Any] = {
        "data_dir": data_dir,
        "database_url": SecretStr(url),
        "master_key": SecretStr(MASTER_KEY),
        "OPENAI_API_KEY": SecretStr(HOUSE_KEY),
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
        # Each takes the server as long as a request.
        "database_pool_size": 2,
        "sweep_interval_seconds": 3600,
        "drain_seconds": 5,
        # Clients, stub and gateway share one event loop: requests wait longer than elsewhere.
        "max_wait_ms": 60_000,
        "admission_timeout_ms": 5000,
        "decoder_queue_seconds": 60,
        "refused_key_max_delay_seconds": 0,
        "store_retry_seconds": 1,
        **changes,
    }
    return GivenSettings(**values)


@dataclass
class Served:
    """A gateway in this process that listens on loopback."""

    gateway: Gateway
    base_url: str
    tenant_id: UUID
    app: FastAPI

    async def key(
        self,
        *,
        livemode: bool = True,
        tenant_id: UUID | None = None,
        user: str | None = None,
        **options: Any,
    ) -> IssuedKey:
        """Issue a key."""
        owner = tenant_id or self.tenant_id
        async with self.gateway.database.operator() as session:
            tenant_session = TenantSession(session)
            user_id = None if user is None else await users.ensure_user(tenant_session, owner, user)
            return await api_keys.issue(
                tenant_session,
                owner,
                pepper=self.gateway.core.pepper,
                livemode=livemode,
                user_id=user_id,
                **options,
            )

    async def tenant(self, name: str, **options: Any) -> UUID:
        """Make another tenant."""
        async with self.gateway.database.operator() as session:
            return (await tenants.create(session, name, **options)).id

    async def budget(
        self, limit_usd: str, *, window: str = "month", tenant_id: UUID | None = None, **owner: Any
    ) -> None:
        """Set a budget of the tenant, or of the api_key_id, user_id or livemode in `owner`."""
        async with self.gateway.database.tenant(tenant_id or self.tenant_id) as session:
            await budgets.set_limit(
                session,
                tenant_id or self.tenant_id,
                window=window,
                limit_nano=parse_usd(limit_usd),
                **owner,
            )

    async def house_budget(self, limit_usd: str, *, window: str = "month") -> None:
        """Set a budget for all calls that use the house credential."""
        async with self.gateway.database.operator() as session:
            await budgets.set_limit(session, None, window=window, limit_nano=parse_usd(limit_usd))

    def http(self, key: IssuedKey | str | None = None, **options: Any) -> httpx2.AsyncClient:
        """A plain HTTP client, with or without a key."""
        headers = {} if key is None else {"Authorization": f"Bearer {secret_of(key)}"}
        return httpx2.AsyncClient(
            base_url=self.base_url, headers=headers, timeout=60, verify=TLS, **options
        )

    def openai(self, key: IssuedKey | str, **options: Any) -> openai.AsyncOpenAI:
        """The official OpenAI client, with its retries turned off."""
        return openai.AsyncOpenAI(
            api_key=secret_of(key), base_url=f"{self.base_url}/v1", max_retries=0, **options
        )

    @asynccontextmanager
    async def mcp(self, key: IssuedKey | str, mode: str = "auto") -> AsyncIterator[Client]:
        """The official MCP client over HTTP."""
        headers = {"Authorization": f"Bearer {secret_of(key)}"}
        async with httpx2.AsyncClient(headers=headers, timeout=60, verify=TLS) as http:
            transport = streamable_http_client(f"{self.base_url}/mcp", http_client=http)
            async with Client(transport, mode=mode) as client:
                yield client

    async def sweep(self) -> None:
        """Run the sweeper once."""
        await Sweeper(self.gateway).sweep()

    async def owner_sql(self, statement: str, **parameters: Any) -> Sequence[Row[Any]]:
        """Run SQL as the owner of the database, whom row-level security does not restrict."""
        settings = self.gateway.settings
        url = settings.migration_database_url or settings.database_url
        assert url is not None
        return await run_sql(url.get_secret_value(), statement, **parameters)

    async def ledger_total(self) -> int:
        """The total cost in the ledger, in nano-USD."""
        rows = await self.owner_sql(
            "SELECT coalesce(sum(amount_nano), 0) FROM ledger WHERE kind <> 'hold'"
        )
        return int(rows[0][0])

    async def check_invariants(self) -> None:
        """Expect the view `invariant_break` to be empty."""
        found = await ledger.invariant_breaks(self.gateway.database)
        assert found == [], found


def secret_of(key: IssuedKey | str) -> str:
    """The secret of a key, as it goes into the Authorization header."""
    return key if isinstance(key, str) else key.secret.reveal()


async def run_sql(url: str, statement: str, **parameters: Any) -> Sequence[Row[Any]]:
    """Run one statement as the role that the address names."""
    engine = create_engine(database_url(url), role=None)
    try:
        async with engine.begin() as connection:
            result = await connection.execute(text(statement), parameters)
            return result.all() if result.returns_rows else []
    finally:
        await engine.dispose()


@asynccontextmanager
async def owner_connections(
    settings: Settings, count: int
) -> AsyncIterator[Sequence[asyncpg.Connection]]:
    """Connections of the schema's owner."""
    assert settings.database_url is not None
    url = database_url(settings.database_url.get_secret_value())
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    opened = [await asyncpg.connect(address) for _ in range(count)]
    try:
        yield opened
    finally:
        for connection in opened:
            await connection.close()


@asynccontextmanager
async def served_gateway(
    settings: Settings, *, today: Callable[[], date] = utc_today, port: int = 0
) -> AsyncIterator[Served]:
    """Serve a gateway in this process until the block ends; `today` decides which models live."""
    async with open_gateway(settings, today=today) as gateway:
        async with gateway.database.operator() as session:
            found = (await tenants.list_page(session, limit=1, name="acme")).items
            tenant = found[0] if found else await tenants.create(session, "acme")
        bounds = ConnectionBounds.of(settings)
        app = create_app(settings, gateway)
        async with serving(app, lifespan="on", port=port, bounds=bounds) as base_url:
            yield Served(gateway, base_url, tenant.id, app)
    _forget_applications()


def _forget_applications() -> None:
    """Empty FastAPI's caches of callables, which keep the last few hundred applications in memory.

    Collecting garbage took seconds by the end of a run that had made a thousand.
    """
    for kind in ("gen", "async_gen", "coroutine"):
        getattr(fastapi_models, f"_is_{kind}_callable_cached").cache_clear()


@dataclass
class GatewayProcess:
    """A gateway in its own process, started by `gateway serve`."""

    process: subprocess.Popen[bytes] | Forked
    base_url: str
    log: Path

    async def until_ready(self, *, tries: int = 600) -> None:
        """Return when `/ready` answers 200; raise if the process ends first."""
        async with httpx2.AsyncClient(timeout=1) as http:
            for _ in range(tries):
                try:
                    if (await http.get(f"{self.base_url}/ready")).status_code == 200:
                        return
                except httpx2.TransportError:
                    pass
                try:
                    await asyncio.to_thread(self.process.wait, 0.05)
                except subprocess.TimeoutExpired:
                    continue
                raise AssertionError(f"the gateway ended:\n{self.log.read_text()}")
        raise AssertionError(f"the gateway did not become ready:\n{self.log.read_text()}")

    def kill(self) -> None:
        """Kill the process (SIGKILL), as a crash would."""
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    """Find a port that is free now; another program could still take it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def gateway_process(
    environment: dict[str, str],
    log: Path,
    *options: str,
    from_nothing: bool = False,
    on_terminal: bool = False,
) -> Iterator[GatewayProcess]:
    """Run `gateway serve` with only this environment; stop it at the end, by force if necessary.

    By default it is forked from a process that has done its imports. `from_nothing` starts a new
    interpreter, as a shell does. `on_terminal` does so too, with a terminal as its standard output,
    whose text is copied to the log.
    """
    port = free_port()
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment = kept | {"GATEWAY_LOG_FORMAT": "json"} | environment
    arguments = ["serve", "--port", str(port), *options]
    process = (
        _start_gateway(arguments, environment, log, on_terminal=on_terminal)
        if from_nothing or on_terminal
        else fork_gateway(arguments, environment, out=log, err=log)
    )
    started = GatewayProcess(process, f"http://127.0.0.1:{port}", log)
    try:
        yield started
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start_gateway(
    arguments: list[str], environment: dict[str, str], log: Path, *, on_terminal: bool
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gateway", *arguments]
    with log.open("ab") as out:
        if not on_terminal:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        screen, terminal = os.openpty()
        tty.setraw(terminal)  # raw, or the terminal would turn \n into \r\n
        started = subprocess.Popen(command, env=environment, stdout=terminal, stderr=out)
        os.close(terminal)
    threading.Thread(target=_copy_screen, args=(screen, log), daemon=True).start()
    return started


def _copy_screen(screen: int, log: Path) -> None:
    """Copy the terminal to the log until its last process ends, which Linux reports as EIO."""
    with log.open("ab", buffering=0) as out, suppress(OSError), os.fdopen(screen, "rb", 0) as shown:
        while printed := shown.read(4096):
            out.write(printed)


def process_environment(settings: Settings) -> dict[str, str]:
    """The environment variables that give a process the same settings."""
    assert settings.database_url is not None
    assert settings.openai_api_key is not None
    return {
        "GATEWAY_DATABASE_URL": settings.database_url.get_secret_value(),
        "GATEWAY_DATA_DIR": str(settings.data_dir),
        "GATEWAY_MASTER_KEY": MASTER_KEY,
        "OPENAI_API_KEY": settings.openai_api_key.get_secret_value(),
        "OPENAI_BASE_URL": settings.openai_base_url,
        "GATEWAY_DATABASE_POOL_SIZE": str(settings.database_pool_size),
        "GATEWAY_SWEEP_INTERVAL_SECONDS": str(settings.sweep_interval_seconds),
        "GATEWAY_DRAIN_SECONDS": str(settings.drain_seconds),
        "GATEWAY_MAX_WAIT_MS": str(settings.max_wait_ms),
        "GATEWAY_DECODER_QUEUE_SECONDS": str(settings.decoder_queue_seconds),
    }


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """The fields of an error answer, whose envelope must have no other fields."""
    body = json.loads(response.content)
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}, body
    error: dict[str, Any] = body["error"]
    return error
