"""A first start from an empty data directory, as a new user runs it."""

import asyncio
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil  # type: ignore[import-untyped]  # ships without types
import pytest
from PIL import Image

from gateway.vault import key_format
from tests.cli.test_cli_manners import IMAGE, CommandLine, fresh_folder
from tests.harness import GatewayProcess, error_of, free_port, gateway_process

ROUTE = "/v1/images/generations"
STOPPED = {0, -signal.SIGTERM}


@contextmanager
def started(
    folder: Path,
    *options: str,
    from_nothing: bool = False,
    on_terminal: bool = False,
    **environment: str,
) -> Iterator[GatewayProcess]:
    """`gateway serve` on the data directory in `folder`; its log begins anew."""
    log = folder / "server.log"
    log.unlink(missing_ok=True)
    own = {"GATEWAY_DATA_DIR": str(folder / "data")} | environment
    with gateway_process(
        own, log, *options, from_nothing=from_nothing, on_terminal=on_terminal
    ) as process:
        asyncio.run(process.until_ready(tries=2400))
        yield process


def keys_in(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "data/quickstart.json").read_text())
    return found


def ask(base_url: str, key: str, method: str = "POST", path: str = ROUTE) -> httpx2.Response:
    """Send one request; by default, a request for an image."""
    body = IMAGE if method == "POST" else None
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.request(method, base_url + path, json=body, headers=headers, timeout=60)


def postgres_runs(folder: Path) -> bool:
    """Tell if Postgres runs: it keeps this file while it runs and removes it at a clean end."""
    return (folder / "data/postgres/postmaster.pid").exists()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with fresh_folder() as path:
        yield path


@pytest.fixture(scope="module")
def first(folder: Path) -> Iterator[GatewayProcess]:
    """The first start, by a person at a terminal."""
    with started(folder, on_terminal=True) as process:
        yield process


def test_the_first_start_leaves_keys_for_their_owner_alone(
    first: GatewayProcess, folder: Path
) -> None:
    keys = keys_in(folder)
    assert set(keys) == {"base_url", "admin_key", "tenant_id", "live_key", "test_key"}
    assert keys["base_url"] == first.base_url
    kinds = [key_format.key_kind(keys[name]) for name in ("admin_key", "live_key", "test_key")]
    assert kinds == ["admin", "live", "test"]
    for name in ("quickstart.json", "master.key"):
        assert stat.S_IMODE((folder / "data" / name).stat().st_mode) == 0o600
    printed = first.log.read_text()
    assert all(keys[name] in printed for name in ("base_url", "test_key", "live_key", "admin_key"))


def test_no_key_is_printed_without_a_terminal() -> None:
    with fresh_folder() as folder:
        for options in ((), ("--workers", "2")):
            with started(folder, *options, from_nothing=True) as process:
                printed = process.log.read_text()
                assert process.base_url in printed
                assert str(folder / "data/quickstart.json") in printed
                assert "igw_" not in printed
                assert "/console/login/link" not in printed


def test_the_printed_link_opens_the_console_once(first: GatewayProcess) -> None:
    printed = first.log.read_text()
    start = f"{first.base_url}/console/login/link?token="
    link = next(word for word in printed.split() if word.startswith(start))
    with httpx2.Client() as browser, httpx2.Client() as late:
        assert browser.get(link).headers["location"] == "/console"
        assert browser.get(f"{first.base_url}/console").status_code == 200
        assert late.get(link).status_code == 401


def test_the_printed_commands_work_in_another_shell(first: GatewayProcess, folder: Path) -> None:
    printed = first.log.read_text()
    line = next(line for line in printed.splitlines() if line.endswith(" usage"))
    command = line.rpartition("cost:")[2].strip()
    assert f"GATEWAY_DATA_DIR={folder / 'data'} " in command
    ended = subprocess.run(
        ["sh", "-c", command], env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_the_printed_command_makes_an_image(first: GatewayProcess, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("this machine has no curl to run the printed command with")
    printed = first.log.read_text().splitlines()
    begin = next(at for at, line in enumerate(printed) if line.strip().startswith("curl "))
    end = next(at for at in range(begin, len(printed)) if not printed[at].strip())
    ended = subprocess.run(
        ["sh", "-c", "\n".join(printed[begin:end])],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    [saved] = tmp_path.iterdir()
    with Image.open(saved) as image:
        image.load()
        assert (saved.suffix, image.format) == (".png", "PNG")


def test_a_live_key_without_a_provider_key_is_refused_clearly(
    first: GatewayProcess, folder: Path
) -> None:
    answer = ask(first.base_url, keys_in(folder)["live_key"])
    assert (answer.status_code, error_of(answer)["code"]) == (503, "no_credential")
    assert "OPENAI_API_KEY" in error_of(answer)["message"]


def test_clients_are_told_that_trying_again_does_not_bring_a_provider_key(
    first: GatewayProcess, folder: Path
) -> None:
    """OpenAI's clients send a 503 three times unless they are told not to."""
    answer = ask(first.base_url, keys_in(folder)["live_key"])
    assert answer.headers.get("x-should-retry") == "false"


def test_the_printed_addresses_answer(first: GatewayProcess, folder: Path) -> None:
    keys = keys_in(folder)
    assert httpx2.get(f"{first.base_url}/docs").status_code == 200
    assert ask(first.base_url, keys["admin_key"], "GET", "/metrics").status_code == 200
    link = httpx2.post(
        first.base_url + ROUTE,
        json={**IMAGE, "response_format": "url"},
        headers={"Authorization": f"Bearer {keys['test_key']}"},
        timeout=60,
    ).json()["data"][0]["url"]
    assert link.startswith(f"{first.base_url}/images/")
    assert Image.open(io.BytesIO(httpx2.get(link).content)).format == "PNG"


def test_a_port_in_use_is_refused_in_one_sentence(first: GatewayProcess, folder: Path) -> None:
    port = first.base_url.rpartition(":")[2]
    command = CommandLine({"GATEWAY_DATA_DIR": str(folder / "data")}, folder)
    for options in ([], ["--json"], ["--workers", "2"]):
        ended = command("serve", "--port", port, *options)
        ended.expect_refusal()
        assert port in ended.err
        if psutil.LINUX:
            assert f"by process {first.process.pid} (" in ended.err


def test_stopped_and_started_again_everything_is_as_it_was() -> None:
    with fresh_folder() as folder:
        with started(folder) as process:
            keys = keys_in(folder)
            assert ask(process.base_url, keys["test_key"]).status_code == 200
            report = ask(process.base_url, keys["test_key"], "GET", "/v1/usage").json()["total"]
            assert postgres_runs(folder)
            process.process.terminate()
            assert process.process.wait(60) in STOPPED
        assert not postgres_runs(folder)
        with started(folder) as process:
            assert {**keys_in(folder), "base_url": ""} == {**keys, "base_url": ""}
            again = ask(process.base_url, keys["test_key"], "GET", "/v1/usage").json()["total"]
            assert again == report
            # A user who follows the printed hints must reach the server that runs now.
            command = CommandLine({"GATEWAY_DATA_DIR": str(folder / "data")}, folder)
            demo = command("demo", "--output-dir", str(folder / "images"))
            assert (demo.status, demo.err) == (0, "")


def test_a_crashed_gateway_starts_again_and_then_leaves_no_postgres() -> None:
    with fresh_folder() as folder:
        with started(folder) as process:
            process.kill()
        assert postgres_runs(folder)
        with started(folder) as process:
            assert ask(process.base_url, keys_in(folder)["test_key"]).status_code == 200
            process.process.terminate()
            assert process.process.wait(60) in STOPPED
        assert not postgres_runs(folder)


def test_two_workers_serve_and_stop_together() -> None:
    with fresh_folder() as folder:
        with started(folder, "--workers", "2", from_nothing=True) as process:
            key = keys_in(folder)["test_key"]
            answers = [ask(process.base_url, key) for _ in range(8)]
            assert [answer.status_code for answer in answers] == [200] * 8
            report = ask(process.base_url, key, "GET", "/v1/usage").json()["total"]
            assert (report["requests"], report["images"]) == (8, 8)
            process.process.terminate()
            assert process.process.wait(60) in STOPPED
        assert not postgres_runs(folder)


def test_a_killed_parent_leaves_neither_workers_nor_postgres() -> None:
    with fresh_folder() as folder:
        with started(folder, "--workers", "2", from_nothing=True) as process:
            postmaster = psutil.Process(
                int((folder / "data/postgres/postmaster.pid").read_text().split()[0])
            )
            process.kill()
            postmaster.wait(60)  # the last worker stops it
        assert not postgres_runs(folder)
        with socket.socket() as port:
            port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a server does
            port.bind(("127.0.0.1", int(process.base_url.rpartition(":")[2])))


async def first_output(folder: Path, *options: str) -> str:
    """The output of `gateway serve` up to its first closing brace; then it is terminated."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "serve", *options),
        env={"PATH": os.environ["PATH"], "GATEWAY_DATA_DIR": str(folder / "data")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        return (await asyncio.wait_for(process.stdout.readuntil(b"}\n"), 30)).decode()
    finally:
        process.terminate()
        await process.communicate()


async def test_a_program_that_starts_the_gateway_reads_its_address() -> None:
    with fresh_folder() as folder:
        for port in (free_port(), free_port()):
            event = json.loads(await first_output(folder, "--json", "--port", str(port)))
            address = f"http://127.0.0.1:{port}"
            assert event == {
                "event": "ready",
                "base_url": address,
                "docs": f"{address}/docs",
                "data_dir": str(folder / "data"),
                "quickstart": str(folder / "data/quickstart.json"),
            }
