"""Backups: made while a gateway serves, restored elsewhere, refused where they would harm."""

import asyncio
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cli.test_cli_manners import IMAGE, CommandLine, fresh_folder
from tests.cli.test_quickstart import ask, keys_in, started
from tests.harness import HOUSE_KEY
from tests.load_helpers import Arrivals
from tests.stub_openai import stub_process

PER_SECOND = 50
BEFORE = 100
AFTER = 50
SECONDS = 100


@pytest.fixture(scope="module")
def source() -> Iterator[Path]:
    with fresh_folder() as folder:
        yield folder


def command_in(folder: Path, **changes: str) -> CommandLine:
    return CommandLine({"GATEWAY_DATA_DIR": str(folder / "data")} | changes, folder)


@pytest.fixture(scope="module")
def backed_up(source: Path) -> tuple[Path, list[dict[str, Any]], Mapping[str, Any]]:
    """A backup made under 50 requests a second; the answers before it; what it says it holds."""
    file = source / "gateway.backup"
    answers: list[dict[str, Any]] = []

    async def use(base_url: str) -> Mapping[str, Any]:
        came = asyncio.Condition()

        async def call(_: int) -> None:
            answer = await http.post(
                "/v1/images/generations", json=IMAGE | {"response_format": "url"}
            )
            if answer.status_code == 200:  # a busy machine may refuse some
                answers.append({"id": answer.headers["X-Gateway-Generation-Id"], **answer.json()})
            async with came:
                came.notify_all()

        async def until_answered(number: int) -> None:
            async with asyncio.timeout(SECONDS), came:
                await came.wait_for(lambda: len(answers) >= number)

        headers = {"Authorization": f"Bearer {keys_in(source)['live_key']}"}
        async with httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=60) as http:
            arrivals = Arrivals(call, 1 / PER_SECOND)
            arrivals.begin()
            await until_answered(BEFORE)
            before = len(answers)
            ended = await asyncio.to_thread(command_in(source), "backup", str(file), "--json")
            # The load went on while it was made, and after it.
            await until_answered(max(before, len(answers)) + AFTER)
            await arrivals.end()
        assert ended.status == 0, ended.err
        del answers[before:]
        return dict(json.loads(ended.out))

    with (
        stub_process() as stub,
        started(source, OPENAI_BASE_URL=stub.base_url, OPENAI_API_KEY=HOUSE_KEY) as gateway,
    ):
        made = asyncio.run(use(gateway.base_url))
    return file, answers, made


def test_a_backup_under_load_holds_every_acknowledged_call_and_its_image(
    backed_up: tuple[Path, list[dict[str, Any]], Mapping[str, Any]], source: Path
) -> None:
    file, answers, made = backed_up
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert made["images"] >= len(answers)
    with fresh_folder() as elsewhere:
        ended = command_in(elsewhere)("restore", str(file), "--json")
        assert (ended.status, ended.err) == (0, "")
        assert json.loads(ended.out) == made
        assert json.loads(command_in(elsewhere)("ledger", "check", "--json").out) == []
        keys = keys_in(source)
        with started(elsewhere) as gateway:
            with httpx2.Client(base_url=gateway.base_url, timeout=60) as http:
                for answer in answers:
                    [image] = answer["data"]
                    path = "/" + image["url"].split("/", 3)[3]
                    found = http.get(path)
                    assert found.status_code == 200, (path, found.text)
                    assert found.content.startswith(b"\x89PNG")
            # It serves on, with the same keys and secrets.
            assert ask(gateway.base_url, keys["test_key"]).status_code == 200
            spent = ask(gateway.base_url, keys["live_key"], "GET", "/v1/usage").json()["total"]
            assert spent["requests"] >= len(answers)
        assert json.loads(command_in(elsewhere)("ledger", "check", "--json").out) == []


def test_a_backup_goes_into_a_pipe_and_never_over_a_file(
    backed_up: tuple[Path, list[dict[str, Any]], Mapping[str, Any]], source: Path
) -> None:
    piped = subprocess.run(
        [sys.executable, "-m", "gateway", "backup", "-"],
        env={"PATH": os.environ["PATH"], "GATEWAY_DATA_DIR": str(source / "data")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        check=True,
    )
    with tarfile.open(fileobj=io.BytesIO(piped.stdout)) as tar:
        names = tar.getnames()
    assert (names[:2], names[-1]) == (["master.key", "database.dump"], "manifest.json")
    assert b"Backed up: " in piped.stderr
    before = backed_up[0].read_bytes()
    ended = command_in(source)("backup", str(backed_up[0]))
    assert (ended.status, "exists" in ended.err) == (1, True)
    assert backed_up[0].read_bytes() == before


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    place = content.index(b"\x89PNG") + 40
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def with_a_foreign_member(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        evil = tarfile.TarInfo("images/../../escaped")
        evil.size = 4
        tar.addfile(evil, io.BytesIO(b"evil"))
    return out.getvalue() + content


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut, "damaged"),
        (flipped, "the images are not as written"),
        (with_a_foreign_member, "a member that no backup has"),
        (lambda _: b"no backup", "no backup"),
    ],
    ids=["cut off", "a flipped bit", "a path outside", "another file"],
)
def test_a_damaged_backup_is_refused_and_leaves_nothing(
    backed_up: tuple[Path, list[dict[str, Any]], Mapping[str, Any]],
    tmp_path: Path,
    harm: Callable[[bytes], bytes],
    said: str,
) -> None:
    harmed = tmp_path / "harmed"
    harmed.write_bytes(harm(backed_up[0].read_bytes()))
    with fresh_folder() as elsewhere:
        ended = command_in(elsewhere)("restore", str(harmed))
        assert ended.status == 1
        assert said in ended.err
        assert list((elsewhere / "data").iterdir()) == []
        assert not (elsewhere / "escaped").exists()


def test_data_in_use_is_never_overwritten(
    backed_up: tuple[Path, list[dict[str, Any]], Mapping[str, Any]], source: Path
) -> None:
    ended = command_in(source)("restore", str(backed_up[0]))
    assert ended.status == 1
    assert "exists. Restore into another directory" in ended.err


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_another_database_is_left_to_its_own_means(tmp_path: Path, command: str) -> None:
    changes = {
        "GATEWAY_DATABASE_URL": "postgresql://owner@127.0.0.1:9/none",
        "GATEWAY_MASTER_KEY": "bWFzdGVyLWtleS1vZi0zMi1ieXRlcy1mb3ItdGVzdHM=",
    }
    file = tmp_path / "file"
    if command == "restore":
        file.write_bytes(b"")
    ended = command_in(tmp_path, **changes)(command, str(file))
    assert ended.status == 1
    assert "docs/backup.md" in ended.err
    assert "GATEWAY_DATABASE_URL" in ended.err


def test_nothing_is_made_where_there_is_no_data(tmp_path: Path) -> None:
    ended = command_in(tmp_path)("backup", str(tmp_path / "file"))
    assert ended.status == 1
    assert "No gateway data" in ended.err
    assert list(tmp_path.iterdir()) == []
