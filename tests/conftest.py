"""Fixtures: one Postgres for the session, and for each test its own database, stub and gateway."""

import gc

# What is imported stays: collecting garbage in between took a sixth of the first test's start.
gc.disable()

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal

import pytest
import pytest_asyncio
import structlog

from gateway.config import Settings
from gateway.db.embedded import EmbeddedPostgres
from gateway.logs import configure_logging
from gateway.main import spare_garbage_collector
from tests.harness import (
    TEMPLATE_READY,
    LogAs,
    PostgresServer,
    Served,
    make_settings,
    served_gateway,
)
from tests.hosting_helpers import Hosted, Place, S3Server, bucket_of, files_in, hosted_gateway
from tests.identity_provider import Issuer, running_issuer
from tests.oauth_helpers import trusting_gateway
from tests.store_helpers import Away
from tests.stub_gemini import StubGemini, running_gemini
from tests.stub_kserve import StubKServe, running_kserve
from tests.stub_kserve.api import KEY as CLUSTER_KEY
from tests.stub_openai import Stub, running_stub
from tests.tls_helpers import Authority

gc.freeze()
gc.enable()

MEMORY = Path("/dev/shm")  # noqa: S108 - in a new folder with a name of its own
ROOM_BYTES = 2 * 2**30
LONG = {
    *("test_schemathesis_operators.py", "test_schemathesis_tenants.py"),
    *("test_workers.py", "test_supervision.py", "test_quickstart.py", "test_rolling_restarts.py"),
}


@pytest.hookimpl(optionalhook=True)  # `make mutants` runs without xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Run a single file without further processes: its tests stay in one.

    Otherwise one more than there are cores: each waits for Postgres, clients and children too.
    """
    files = {argument.partition("::")[0] for argument in config.args}
    if len(files) == 1 and files.pop().endswith(".py"):
        return 0
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first: begun last, one would keep the other processes waiting."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session", autouse=True)
def logging_as_served() -> None:
    """Log as the served gateway does; structlog's default prints variables, secrets included."""
    configure_logging("INFO", "json")
    # A cached logger would keep a configuration after the test that made it.
    structlog.configure(cache_logger_on_first_use=False)
    # As a served gateway does: collecting all imported objects takes a tenth of a second.
    spare_garbage_collector()


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make clients trust one authority of the tests' own: they talk to loopback alone.

    Each client and gateway would otherwise load the machine's 150 authorities, a tenth of the
    tests' time.
    """
    authority = Authority(tmp_path_factory.mktemp("authority"), "trusted")
    os.environ["SSL_CERT_FILE"] = str(authority.file)
    return authority


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The owner's address of a real Postgres: configured, in a container, or embedded."""
    given = os.environ.get("GATEWAY_TEST_DATABASE_URL")
    if given:
        yield given
        return
    if Path("/var/run/docker.sock").exists():
        # Slow to import, and of no use without Docker.
        from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415

        with PostgresContainer("postgres:18", driver="asyncpg") as container:
            yield container.get_connection_url()
        return
    folder = Path(tempfile.mkdtemp(prefix="gateway-tests-", dir=_in_memory()))
    embedded = EmbeddedPostgres(folder)
    yield embedded.owner_url("postgres").render_as_string(hide_password=False)
    asyncio.run(embedded.close())
    shutil.rmtree(folder, ignore_errors=True)


def _in_memory() -> Path | None:
    """A directory in memory with enough room; None for the system's temporary directory.

    Every test has its own database of 300 files. On a disk, creating and removing them takes
    longer than most tests.
    """
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM_BYTES
    return MEMORY if has_room and os.access(MEMORY, os.W_OK) else None


@pytest.fixture(scope="session")
def postgres(postgres_url: str) -> PostgresServer:
    """The server, with its template migrated."""
    server = PostgresServer(postgres_url)
    if TEMPLATE_READY not in os.environ:
        asyncio.run(server.prepare())
    return server


@pytest.fixture
def log_as() -> Iterator[LogAs]:
    """A function that sends the log to stderr at a level and in a format, for this test."""
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers, root.level

    def configure(log_level: str, log_format: Literal["console", "json"]) -> None:
        configure_logging(log_level, log_format)
        structlog.configure(cache_logger_on_first_use=False)

    yield configure
    structlog.configure(**before)
    root.handlers = handlers
    root.setLevel(level)


@pytest.fixture
def calm_log(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Expect neither a traceback nor an error in the log, until the gateway has shut down."""
    yield
    records = [*caplog.get_records("call"), *caplog.get_records("teardown")]
    assert "gateway.requests" in {record.name for record in records}
    loud = [one for one in records if one.levelno >= logging.ERROR or one.exc_info]
    assert [one.getMessage() for one in loud] == []
    assert "Traceback" not in "".join((*capfd.readouterr(), caplog.text))


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[str]:
    """The owner's address of a migrated database for this test alone."""
    url = await postgres.create()
    yield url
    await postgres.drop(url)


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    """The stub of OpenAI's Images API on loopback, with its own bill."""
    async with running_stub() as running:
        yield running


@pytest.fixture
async def gemini() -> AsyncIterator[StubGemini]:
    """The stub of Gemini's API on loopback, with its own bill."""
    async with running_gemini() as running:
        yield running


@pytest.fixture
async def kserve(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StubKServe]:
    """The stub of KServe's servers on loopback, with its own bill; `CLUSTER_TOKEN` is its key."""
    monkeypatch.setenv("CLUSTER_TOKEN", CLUSTER_KEY)
    async with running_kserve() as running:
        yield running


@pytest.fixture
def settings(database: str, stub: Stub, tmp_path: Path) -> Settings:
    """Settings that point at this test's database and stub."""
    return make_settings(database, tmp_path, OPENAI_BASE_URL=stub.base_url)


@pytest.fixture
async def served(settings: Settings) -> AsyncIterator[Served]:
    """A gateway on loopback; the money invariants are checked after the test."""
    async with served_gateway(settings) as running:
        yield running
        await running.check_invariants()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unused_stub() -> AsyncIterator[Stub]:
    """The stub behind `unchanged`, which must not receive a call."""
    async with running_stub() as running:
        yield running
        assert running.calls == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unchanged(
    postgres: PostgresServer, unused_stub: Stub, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """One gateway for all tests of a file whose requests are all refused and change nothing.

    They run in the loop of their file: `@pytest.mark.asyncio(loop_scope="module")`.
    """
    url = await postgres.create()
    folder = tmp_path_factory.mktemp("unchanged")
    async with served_gateway(
        make_settings(url, folder, OPENAI_BASE_URL=unused_stub.base_url)
    ) as running:
        yield running
        await running.check_invariants()
    await postgres.drop(url)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """The operator's identity provider on loopback."""
    with running_issuer() as running:
        yield running


@pytest.fixture
async def trusting(settings: Settings, issuer: Issuer) -> AsyncIterator[Served]:
    """A gateway on loopback that accepts tokens of that identity provider."""
    async with trusting_gateway(settings, issuer) as running:
        yield running
        await running.check_invariants()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 on loopback for all tests; each takes a bucket of its own."""
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture(params=["files", "s3"])
async def place(request: pytest.FixtureRequest, s3_server: S3Server, tmp_path: Path) -> Place:
    """The place that stores images; each test runs once with files and once with S3."""
    return await bucket_of(s3_server) if request.param == "s3" else files_in(tmp_path / "store")


@pytest.fixture(params=["files", "s3"])
async def away(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Away]:
    """A store, by files and by S3, that the test can make fail."""
    if request.param == "files":
        folder = tmp_path / "store"
        yield Away(files_in(folder), folder, None)
        return
    server = S3Server()
    yield Away(await bucket_of(server), None, server)
    server.stop()


@pytest.fixture
async def hosted(settings: Settings, place: Place) -> AsyncIterator[Hosted]:
    """A gateway that stores images at `place`."""
    async with hosted_gateway(settings, place) as running:
        yield running
