"""Commands start quickly: each imports what it needs, and those that read create nothing."""

import json
import os
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.cli.app import COMMANDS, load
from gateway.config import Settings
from gateway.db.addresses import create_engine, database_url
from gateway.errors import ConfigurationError
from gateway.reading import open_reader
from tests.cli.test_cli_manners import CommandLine
from tests.harness import process_environment

SERVER_ONLY = {
    *("fastapi", "starlette", "uvicorn", "mcp", "openai", "PIL", "alembic", "redis"),
    *("obstore", "httpx2", "gateway.bootstrap", "gateway.opening", "gateway.generation.pipeline"),
}
UNNEEDED = {
    *("structlog", "prometheus_client", "pygments", "urllib.request", "gateway.catalog.loading"),
    *("gateway.bootstrap", "gateway.vault.gateway_secrets"),
}
"""Each takes a fortieth to a tenth of the time of a command that reads."""
BY_TELEMETRY = ("webhooks list", "reconcile list", "reconcile show x")
"""Share modules with commands that raise alarms."""
DATABASE = {"sqlalchemy", "asyncpg", "pydantic", "gateway.config"}
READING = (
    *("usage", "tenants list", "budgets list --house", "webhooks list", "prices list"),
    *("users list --tenant t", "keys list --tenant t", "credentials list --tenant t"),
    *("limits list --tenant t", "requests list", "requests show x", "admin-keys list"),
    *("reconcile list", "reconcile show x"),
)
LISTED = """
import atexit, sys
names = [sys.argv.pop(1)]
atexit.register(lambda: open(names[0], "w").write(" ".join(sys.modules)))
sys.argv[0] = "gateway"
from gateway.cli import main
main()
"""


def modules_of(arguments: str, folder: Path, environment: dict[str, str]) -> set[str]:
    """The modules that a command has imported when it ends."""
    report = folder / "modules"
    ended = subprocess.run(
        [sys.executable, "-c", LISTED, str(report), *arguments.split()],
        env={"PATH": os.environ["PATH"], **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in ended.stderr
    return set(report.read_text().split())


@pytest.mark.parametrize("arguments", ["--help", "--version", "tenants"])
def test_help_imports_neither_server_nor_database(arguments: str, tmp_path: Path) -> None:
    found = modules_of(arguments, tmp_path, {})
    assert found & SERVER_ONLY == set()
    if arguments.startswith("--"):
        assert found & DATABASE == set()


@pytest.mark.parametrize("arguments", READING)
def test_a_command_that_reads_imports_no_server(
    arguments: str, settings: Settings, tmp_path: Path
) -> None:
    found = modules_of(arguments, tmp_path, process_environment(settings))
    assert "asyncpg" in found
    assert found & SERVER_ONLY == set()
    if arguments not in BY_TELEMETRY:
        assert found & UNNEEDED == set()


def test_the_command_tree_repeats_each_commands_own_summary() -> None:
    for name, entry in COMMANDS.items():
        assert entry.help == load(name).help.strip().splitlines()[0]


def test_the_version_is_printed(tmp_path: Path) -> None:
    ended = CommandLine({}, tmp_path)("--version")
    assert ended.status == 0
    assert ended.out.startswith("gateway 0.")


def test_a_shell_completes_commands_and_options(tmp_path: Path) -> None:
    for words, expected in (("gateway te", "tenants"), ("gateway tenants cr", "create")):
        ended = CommandLine({}, tmp_path).process(
            _GATEWAY_COMPLETE="complete_bash",
            COMP_WORDS=words,
            COMP_CWORD=str(words.count(" ")),
        )
        assert ended.out.split() == [expected]


def test_commands_that_read_create_nothing_on_an_empty_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = CommandLine({"GATEWAY_DATA_DIR": str(data)}, tmp_path)
    for arguments in READING:
        ended = command(*arguments.split())
        ended.expect_refusal()
        assert f"No gateway data in {data}" in ended.err
        assert list(tmp_path.iterdir()) == []
    ended = command("doctor", "--json")
    assert ended.status == 1
    assert f"No gateway data in {data}" in json.loads(ended.out)[-1]["detail"]
    assert list(tmp_path.iterdir()) == []


async def test_a_database_without_a_gateway_is_refused(settings: Settings) -> None:
    async with _owner(settings) as owner:
        await owner.execute(text("DROP SCHEMA public CASCADE"))
    with pytest.raises(ConfigurationError, match="No gateway data in the database"):
        async with open_reader(settings):
            pass


async def test_a_schema_of_another_release_is_named_and_left_alone(settings: Settings) -> None:
    async with _owner(settings) as owner:
        await owner.execute(text("UPDATE alembic_version SET version_num = 'of-another-release'"))
    with pytest.raises(ConfigurationError, match="of-another-release"):
        async with open_reader(settings):
            pass


async def test_a_reading_command_opens_the_database_read_only(
    settings: Settings,
) -> None:
    async with open_reader(settings) as reader:
        with pytest.raises(DBAPIError, match="read-only transaction"):
            async with reader.database.operator() as session:
                await session.execute(text("UPDATE tenant SET name = 'x'"))


def _owner(settings: Settings) -> AbstractAsyncContextManager[AsyncConnection]:
    assert settings.database_url is not None
    url = database_url(settings.database_url.get_secret_value())
    return create_engine(url, role=None).begin()
