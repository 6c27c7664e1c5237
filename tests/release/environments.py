"""Environments of their own, with another Python or other versions of packages."""

import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.harness import free_port
from tests.release.packages import ROOT

UV = ROOT / ".venv/release/bin/uv"
READY_TRIES = 6000
WAIT_SECONDS = 0.05
STOP_SECONDS = 60
PNG, JPEG, WEBP = b"\x89PNG", b"\xff\xd8\xff", b"RIFF"


class TrialError(Exception):
    """A trial failed, or could not begin."""


def run(*command: str | Path, folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a program to its end; return its output, or raise with what it said."""
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        said = f"{ended.stdout}\n{ended.stderr}".strip()
        raise TrialError(f"{' '.join(map(str, command))} ended with {ended.returncode}:\n{said}")
    return ended.stdout


def find_python(version: str) -> Path | None:
    """Find the interpreter of a version (3.13): on PATH, else among those of pyenv."""
    names = [f"python{version}"]
    if shutil.which("pyenv"):
        found = subprocess.run(["pyenv", "prefix", version], capture_output=True, check=False)
        if found.returncode == 0:
            names.append(f"{found.stdout.decode().strip()}/bin/python")
    question = "import sys, ssl; print(sys.executable, '%d.%d' % sys.version_info[:2])"
    for name in names:
        path = shutil.which(name)
        if path is None:
            continue
        said = subprocess.run([path, "-c", question], capture_output=True, check=False, text=True)
        if said.returncode == 0 and said.stdout.split()[1:] == [version]:
            return Path(said.stdout.split()[0])
    return None


def uv(*arguments: str | Path, folder: Path) -> str:
    """Run uv, which comes with the tools for releases."""
    if not UV.exists():
        raise TrialError("uv is not installed: make release-tools")
    return run(UV, *arguments, folder=folder)


def make_environment(folder: Path, python: Path | str) -> Path:
    """Make an empty environment below `folder`; return its interpreter."""
    uv("venv", "--quiet", "--no-project", "--python", python, "venv", folder=folder)
    return folder / "venv/bin/python"


def try_gateway(python: Path, folder: Path, version: str) -> None:
    """Start the installed gateway in an empty folder and make images by REST and by MCP.

    Raises `TrialError` with the gateway's log if anything is not as it should be.
    """
    folder.mkdir()
    gateway = python.with_name("gateway")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GATEWAY_DATA_DIR": str(folder / "data"),
    }
    said = run(gateway, "--version", folder=folder, environment=environment)
    if said != f"gateway {version}\n":
        raise TrialError(f"gateway --version says {said!r}, not {version}.")
    with _serving(gateway, folder, environment):
        made = json.loads(run(gateway, "demo", "--json", folder=folder, environment=environment))
        _check_images(folder, made)
        run(gateway, "doctor", folder=folder, environment=environment)


def _check_images(folder: Path, made: Mapping[str, list[dict[str, Any]]]) -> None:
    if len(made["images"]) != 2:
        raise TrialError(f"gateway demo made {made['images']}, not two images.")
    for image in made["images"]:
        if not (folder / image["saved"]).read_bytes().startswith((PNG, JPEG, WEBP)):
            raise TrialError(f"{image['saved']} is not an image.")
    if [usage["images"] for usage in made["usage"]] != [2]:
        raise TrialError(f"The usage does not have two images: {made['usage']}")


@contextmanager
def _serving(gateway: Path, folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    log = folder / "serve.log"
    port = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [gateway, "serve", "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=out,
        )
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{port}/ready", log)
        yield
        process.send_signal(signal.SIGTERM)
        if status := process.wait(STOP_SECONDS):
            raise TrialError(f"gateway serve ended with {status}:\n{log.read_text()}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    for _ in range(READY_TRIES):
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310 - loopback
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        try:
            process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        break
    raise TrialError(f"The gateway did not become ready:\n{log.read_text()}")
