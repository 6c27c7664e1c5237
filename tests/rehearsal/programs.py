"""Programs that a rehearsal starts: Postgres, an S3 server, nginx, Prometheus.

Each keeps its files in one folder, listens on loopback and ends with its block.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.harness import free_port

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{os.environ['PATH']}:/usr/sbin"
STOP_SECONDS = 60
COMMAND_SECONDS = 300
LOOKS = 3600
LOOK_SECONDS = 0.05
IS_ROOT = os.geteuid() == 0


def program(name: str, package: str) -> str:
    """The path of a program; the test is skipped where its Debian package is not installed."""
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"the Debian package {package} is not installed")
    return found


def expect_registry(folder: Path) -> None:
    """Skip the test where no package registry answers."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "idna"],
        check=False,
        capture_output=True,
        timeout=COMMAND_SECONDS,
    )
    if asked.returncode != 0:
        pytest.skip("no package registry answers")


def run(
    command: Sequence[str | Path],
    *,
    user: str | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end; what it prints. Its errors are those of the test."""
    ended = subprocess.run(
        command,
        check=False,
        env={"PATH": PATH, "LC_ALL": "C.UTF-8", **(environment or {})},
        user=user,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
    return ended.stdout


@contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    *,
    user: str | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program until the end of the block; it is asked to end, and awaited."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            env={"PATH": PATH, **(environment or {})},
            stdout=out,
            stderr=out,
            user=user,
            cwd=cwd,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until_reached(check: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the check holds; raise if the process ends before, or after some minutes."""
    for _ in range(LOOKS):
        if check():
            return
        try:
            process.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(f"{process.args!r} did not become ready:\n{log.read_text()}")


class Postgres:
    """A server of Debian's package, without a database of its own.

    Its superuser `postgres` comes over the socket alone; others need their password.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.bin = _newest_bin()

    @property
    def superuser(self) -> dict[str, str]:
        """The environment in which psql and its like are the superuser's."""
        return {"PGHOST": str(self.folder), "PGPORT": str(self.port), "PGUSER": "postgres"}

    def is_ready(self) -> bool:
        """Tell if it accepts connections."""
        asked = subprocess.run(
            [self.bin / "pg_isready", "--quiet"],
            env={"PATH": PATH, **self.superuser},
            check=False,
        )
        return asked.returncode == 0


def _newest_bin() -> Path:
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4])
    )
    if not found:
        pytest.skip("the Debian package postgresql is not installed")
    return found[-1].parent


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A new cluster, served by the package's user where the tests are root's."""
    user = "postgres" if IS_ROOT else None
    with tempfile.TemporaryDirectory(prefix="gateway-pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if user is not None:
            shutil.chown(folder, user)
        server = Postgres(folder, free_port())
        run(
            [
                *(server.bin / "initdb", "--username=postgres", "--encoding=UTF8"),
                *("--locale=C.UTF-8", "--auth-local=trust", "--auth-host=scram-sha-256"),
                *("--no-instructions", "--pgdata", folder / "data"),
            ],
            user=user,
        )
        command: list[str | Path] = [
            *(server.bin / "postgres", "-D", folder / "data", "-p", str(server.port)),
            *("-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"),
        ]
        log = folder / "log"
        with running(command, log, user=user) as process:
            until_reached(server.is_ready, process, log)
            # SIGINT: a fast shutdown, which does not wait for connections.
            yield server
            process.send_signal(2)


@contextmanager
def running_s3(folder: Path, bucket: str) -> Iterator[int]:
    """The port of an S3 server (moto) in a process of its own, with this bucket."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "s3.log"

    def has_bucket() -> bool:
        try:
            return httpx2.put(f"http://127.0.0.1:{port}/{bucket}").status_code == 200
        except httpx2.TransportError:
            return False

    with running(command, log) as process:
        until_reached(has_bucket, process, log)
        yield port


@contextmanager
def running_nginx(folder: Path, site: str) -> Iterator[None]:
    """Serve with this site; its files are in the folder."""
    folder.mkdir()
    nginx = program("nginx", "nginx-light")
    (folder / "site.conf").write_text(site)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"{'user root;' if IS_ROOT else ''}\ndaemon off;\nworker_processes 1;\n"
        f"pid {folder}/pid;\nevents {{ worker_connections 512; }}\n"
        f"http {{\n{temporary}include {folder}/site.conf;\n}}\n"
    )
    common: list[str | Path] = [nginx, "-c", folder / "nginx.conf", "-e", folder / "error.log"]
    run([*common, "-t"])
    with running(common, folder / "log") as process:
        until_reached((folder / "pid").exists, process, folder / "error.log")
        yield


@contextmanager
def running_prometheus(folder: Path) -> Iterator[str]:
    """The address of a Prometheus with the `prometheus.yml` in the folder."""
    run([program("promtool", "prometheus"), "check", "config", folder / "prometheus.yml"])
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        program("prometheus", "prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
        "--log.level=warn",
    ]

    def is_ready() -> bool:
        try:
            return httpx2.get(f"{url}/-/ready").status_code == 200
        except httpx2.TransportError:
            return False

    with running(command, folder / "log") as process:
        until_reached(is_ready, process, folder / "log")
        yield url
