"""Rules for every command, and the runner that the other command-line tests use."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.forks import KEPT, fork_gateway
from tests.harness import gateway_process

GENERATIONS = "/v1/images/generations"
IMAGE = {"model": "gpt-image-2", "prompt": "a red circle", "quality": "low", "size": "1024x1024"}
TRIES = 500
COMMAND_SECONDS = 100


@dataclass(frozen=True)
class Finished:
    """A command that ended: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """The JSON value on stdout; stderr must be empty."""
        assert (self.status, self.err) == (0, "")
        return json.loads(self.out)

    def expect_refusal(self) -> None:
        """Expect status 1 and one sentence on standard error, without a traceback."""
        assert (self.status, self.out) == (1, "")
        assert "Traceback" not in self.err
        assert self.err.startswith("Refused: ")
        assert self.err.count("\n") == 1

    def expect_wrong_usage(self) -> None:
        """Expect status 2 and a hint at the help."""
        assert (self.status, self.out) == (2, "")
        assert "Traceback" not in self.err
        assert "--help" in self.err


@dataclass(frozen=True)
class CommandLine:
    """Runs `gateway …` in processes with only this environment.

    Most of a command's time goes into its imports. A call forks a process that has done them
    already, and is otherwise the command; `process` starts one from nothing, as a shell does.
    """

    environment: dict[str, str]
    folder: Path

    def __call__(self, *arguments: str, stdin: str = "", **changes: str) -> Finished:
        """Run one command in a fork of a process that has imported it."""
        with tempfile.TemporaryDirectory() as name:
            files = Path(name)
            (files / "in").write_text(stdin)
            out, err = files / "out", files / "err"
            forked = fork_gateway(
                list(arguments),
                self._whole(changes),
                out=out,
                err=err,
                stdin=files / "in",
                folder=self.folder,
            )
            try:
                status = forked.wait(COMMAND_SECONDS)
            except subprocess.TimeoutExpired:
                forked.kill()
                raise AssertionError(f"it goes on and on: {arguments}") from None
            return Finished(status, out.read_text(), err.read_text())

    def process(self, *arguments: str, **changes: str) -> Finished:
        """Run one command as a shell does."""
        ended = subprocess.run(
            [sys.executable, "-m", "gateway", *arguments],
            env=self._whole(changes),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        return Finished(ended.returncode, ended.stdout, ended.stderr)

    def each(self, *commands: str) -> list[Finished]:
        """Run commands (split at spaces), one after the other."""
        return [self(*command.split()) for command in commands]

    def _whole(self, changes: dict[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        return kept | {"COLUMNS": "200", "PWD": str(self.folder)} | self.environment | changes


@dataclass(frozen=True)
class RunningGateway:
    """A gateway that serves from a data directory, and commands for the same directory."""

    command: CommandLine
    base_url: str
    quickstart: dict[str, str]

    def ask(self, method: str, path: str, key: str, **options: Any) -> httpx2.Response:
        """One request with a key."""
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=self.base_url, headers=headers, timeout=60) as http:
            return http.request(method, path, **options)

    def make_image(self, key: str) -> httpx2.Response:
        """Ask for an image."""
        return self.ask("POST", GENERATIONS, key, json=IMAGE)

    def expect_soon(self, key: str, status: int) -> httpx2.Response:
        """Wait until the answer to this key is `status`: changes reach a server by notification."""
        answer = self.ask("GET", "/v1/models", key)
        for _ in range(TRIES):
            if answer.status_code == status:
                break
            answer = self.ask("GET", "/v1/models", key)
        assert answer.status_code == status
        return answer


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """A folder that this user alone may enter."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-cli-"))
    try:
        yield folder
    finally:
        _stop_postgres_of(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _stop_postgres_of(folder: Path) -> None:
    """Stop the Postgres that a crashed gateway has left behind."""
    with suppress(FileNotFoundError, ProcessLookupError):
        lines = (folder / "data/postgres/postmaster.pid").read_text().splitlines()
        os.kill(int(lines[0]), signal.SIGQUIT)


@contextmanager
def running_gateway(**environment: str) -> Iterator[RunningGateway]:
    """A gateway on a new data directory with its own Postgres, in a process of its own."""
    with fresh_folder() as folder:
        variables = {"GATEWAY_DATA_DIR": str(folder / "data"), **environment}
        with gateway_process(variables, folder / "server.log") as started:
            asyncio.run(started.until_ready())
            quickstart = json.loads((folder / "data/quickstart.json").read_text())
            command = CommandLine(variables, folder)
            yield RunningGateway(command, started.base_url, quickstart)


@pytest.fixture
def command(tmp_path: Path) -> CommandLine:
    """Commands that refuse before they look at any database."""
    return CommandLine({"GATEWAY_DATA_DIR": str(tmp_path / "data")}, tmp_path)


def test_the_help_names_every_command(command: CommandLine) -> None:
    shown = command("--help")
    assert (shown.status, shown.err) == (0, "")
    for name in (
        *("serve", "migrate", "doctor", "demo", "usage", "tenants"),
        *("keys", "admin-keys", "credentials", "budgets", "limits", "webhooks"),
        *("prices", "master-key"),
    ):
        assert f" {name} " in shown.out


def test_wrong_usage_is_status_2_and_touches_nothing(command: CommandLine) -> None:
    for ended in command.each(
        "paint",
        "tenants paint",
        "tenants create",
        "keys create",
        "keys create --tenant t --scopes images:paint",
        "keys create --tenant t --expires soon",
        "keys roll 01a1f8d9-0000-7000-8000-000000000000 --grace soon",
        "credentials set --tenant t --secret sk-on-the-command-line",
        "credentials set --tenant t sk-on-the-command-line",
        "budgets set --tenant t",
        "usage --format xml",
        "usage --mode both",
        "prices import no-such-file.toml",
        "serve --port 0",
    ):
        ended.expect_wrong_usage()
    assert not (command.folder / "data").exists()


def test_a_command_started_from_nothing_behaves_like_a_forked_one(command: CommandLine) -> None:
    for arguments in (["tenants", "create"], ["usage", "--mode", "both"]):
        started, forked = command.process(*arguments), command(*arguments)
        assert (started.status, started.out) == (forked.status, forked.out)
        assert started.err == forked.err


def test_a_group_without_a_command_shows_its_commands(command: CommandLine) -> None:
    for group, found in zip(
        ("tenants", "master-key"), command.each("tenants", "master-key"), strict=True
    ):
        assert found.status == 2
        assert group in found.out + found.err


@pytest.mark.parametrize(
    "broken",
    [
        {"OPENAI_API_KEY": ""},
        {"OPENAI_API_KEY": "changeme"},
        {"GATEWAY_ADMIN_KEY": "password"},
        {"GATEWAY_LOG_LEVEL": "LOUD"},
        {"GATEWAY_DATABASE_URL": "mysql://127.0.0.1/x", "GATEWAY_MASTER_KEY": "x" * 43 + "="},
    ],
    ids=lambda broken: next(iter(broken)),
)
def test_a_broken_setting_is_named_and_its_value_is_not_shown(
    command: CommandLine, broken: dict[str, str]
) -> None:
    ended = command("tenants", "list", "--json", **broken)
    assert (ended.status, ended.out) == (1, "")
    assert "Traceback" not in ended.err
    assert any(name in ended.err for name in broken)
    assert not any(value in ended.err for value in broken.values() if len(value) > 4)


def test_an_unreachable_database_is_one_sentence(command: CommandLine) -> None:
    key = "bWFzdGVyLWtleS1jYW5hcnktMDEyMzQ1Njc4OWFiY2Q="
    url = "postgresql://someone:hunter2-canary@127.0.0.1:9/gateway"
    ended = command("migrate", GATEWAY_DATABASE_URL=url, GATEWAY_MASTER_KEY=key)
    ended.expect_refusal()
    assert "canary" not in ended.err


@pytest.mark.parametrize("arguments", [["migrate"], ["doctor"], ["serve", "--port", "8999"]])
def test_a_data_directory_that_cannot_be_made_is_no_traceback(
    command: CommandLine, arguments: list[str]
) -> None:
    file = command.folder / "file"
    file.touch()
    ended = command(*arguments, GATEWAY_DATA_DIR=str(file / "data"))
    assert ended.status == 1
    assert "Traceback" not in ended.err
    assert "GATEWAY_DATA_DIR" in ended.out + ended.err
