"""The embedded Postgres admits only the gateway, and sees none of its secrets."""

import json
import os
import pwd
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import psutil  # type: ignore[import-untyped]  # ships without types
import pytest

from gateway.db.embedded import EmbeddedPostgres
from gateway.db.postgres_account import (
    FORMER_SHARED_ACCOUNT,
    SystemAccount,
    give,
    own_account,
    private_account,
)
from gateway.db.postgres_cluster import read_postmaster, spawn, stop
from gateway.db.postgres_programs import find_programs, reachable_installation
from gateway.errors import ConfigurationError

IS_ROOT = os.geteuid() == 0
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux'")
AS_ROOT = pytest.mark.skipif(not IS_ROOT, reason="only root may become another user")
OTHER_USER = 65_534
REFUSED_LOGIN = b"C28000\0"
"""The SQLSTATE of `invalid_authorization_specification` in a protocol error."""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory to be, below one that only this user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="igw-"))
    yield folder / "data"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A cluster to copy: making one takes seconds."""
    folder = Path(tempfile.mkdtemp(prefix="igw-"))
    EmbeddedPostgres(folder).close_now()
    yield folder / "postgres"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def used_dir(data_dir: Path, cluster: Path) -> Path:
    """A data directory that has a cluster, as a gateway leaves it that has ended."""
    copy_cluster(cluster, data_dir)
    return data_dir


def copy_cluster(cluster: Path, data_dir: Path) -> None:
    """Put a copy of the cluster into a new data directory."""
    data_dir.mkdir(mode=0o700, parents=True)
    made = shutil.copytree(cluster, data_dir / "postgres")
    status = cluster.stat()
    give(made, SystemAccount(status.st_uid, status.st_gid, is_other=IS_ROOT))


@contextmanager
def embedded(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A running server; stopped at the end by the way that the last gateway takes."""
    server = EmbeddedPostgres(data_dir)
    try:
        yield server
    finally:
        server.close_now()


async def answer_of(server: EmbeddedPostgres, statement: str = "SELECT 1") -> object:
    """The value that the server gives its gateway."""
    host = server.owner_url().query["host"]
    assert isinstance(host, str)
    connection = await asyncpg.connect(host=host, user="postgres", database="postgres")
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def as_other_user(work: Callable[[], int]) -> int:
    """Run `work` in a fork that is another user's; its result, from 0 to 255."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            os.setgroups([])
            os.setresgid(OTHER_USER, OTHER_USER, OTHER_USER)
            os.setresuid(OTHER_USER, OTHER_USER, OTHER_USER)
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def log_in_at(path: str) -> int:
    """0: logged in as the superuser; 1: may not open the socket; 2: refused by the server."""
    words = b"user\0postgres\0database\0postgres\0\0"
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except PermissionError:
            return 1
        client.sendall(struct.pack("!ii", len(words) + 8, 196_608) + words)
        return 2 if REFUSED_LOGIN in client.recv(4096) else 0


@AS_ROOT
def test_another_local_user_can_neither_reach_nor_open_the_socket(used_dir: Path) -> None:
    with embedded(used_dir):
        path = str(used_dir / "postgres/.s.PGSQL.5432")
        assert as_other_user(lambda: log_in_at(path)) == 1
        folder = os.open(used_dir / "postgres", os.O_RDONLY | os.O_DIRECTORY)
        try:
            within = f"/proc/self/fd/{folder}/.s.PGSQL.5432"
            assert as_other_user(lambda: log_in_at(within)) == 1
        finally:
            os.close(folder)


@AS_ROOT
def test_the_server_refuses_another_local_user_even_where_every_mode_was_opened(
    used_dir: Path,
) -> None:
    with embedded(used_dir):
        path = used_dir / "postgres/.s.PGSQL.5432"
        for opened in (path, *list(path.parents)[:3]):
            opened.chmod(0o777)
        assert as_other_user(lambda: log_in_at(str(path))) == 2


async def test_socket_and_cluster_are_for_their_owner_alone(data_dir: Path) -> None:
    with embedded(data_dir) as server:
        assert await answer_of(server) == 1
        cluster = data_dir / "postgres"
        for path in (data_dir, cluster, cluster / ".s.PGSQL.5432"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert await answer_of(server, "SHOW listen_addresses") == ""
        rules = "SELECT string_agg(type || ' ' || auth_method, ',') FROM pg_hba_file_rules"
        assert await answer_of(server, rules) == "local peer"


async def test_directories_above_the_data_directory_keep_their_modes(
    data_dir: Path, cluster: Path
) -> None:
    inner = data_dir / "closed/data"
    inner.parent.mkdir(mode=0o700, parents=True)
    copy_cluster(cluster, inner)
    before = {path: path.stat().st_mode for path in inner.parents}
    with embedded(inner) as server:
        assert await answer_of(server) == 1
    assert {path: path.stat().st_mode for path in inner.parents} == before


@LINUX_ONLY
async def test_a_path_too_long_for_a_socket_works_all_the_same(
    data_dir: Path, cluster: Path
) -> None:
    inner = data_dir / ("x" * 120) / ("y" * 120)
    copy_cluster(cluster, inner)
    with embedded(inner) as server:
        assert await answer_of(server) == 1
        assert stat.S_ISSOCK((inner / "postgres/.s.PGSQL.5432").stat().st_mode)
        assert await answer_of(server, "SHOW unix_socket_directories") == "."


@LINUX_ONLY
def test_the_server_gets_a_bare_environment(
    used_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-of-the-environment")
    with embedded(used_dir) as server:
        postmaster = psutil.Process(server.pid)
        for process in (postmaster, *postmaster.children()):
            assert set(process.environ()) <= {"PATH", "LC_ALL", "PGDATA"}


@AS_ROOT
def test_each_data_directory_has_a_user_of_its_own(data_dir: Path) -> None:
    with embedded(data_dir / "one") as one, embedded(data_dir / "two") as two:
        users = {psutil.Process(server.pid).uids().real for server in (one, two)}
    assert len(users) == 2
    names = {entry.pw_uid for entry in pwd.getpwall()}
    assert not users & (names | {0})


@pytest.mark.parametrize("owner", ["its own", pytest.param("shared", marks=AS_ROOT)])
async def test_a_cluster_that_trusted_everybody_does_so_no_longer(
    used_dir: Path, owner: str
) -> None:
    cluster = used_dir / "postgres"
    (cluster / "pg_hba.conf").write_text("local all all trust\n")
    if owner == "shared":
        give(cluster, former_account())
    with embedded(used_dir) as server:
        assert await answer_of(server, "SELECT auth_method FROM pg_hba_file_rules") == "peer"
        if owner == "shared":
            assert psutil.Process(server.pid).uids().real != former_account().uid


def former_account() -> SystemAccount:
    """The account that gateways of earlier versions shared; root's, where there is none."""
    try:
        entry = pwd.getpwnam(FORMER_SHARED_ACCOUNT)
    except KeyError:
        return SystemAccount(0, 0, is_other=False)
    return SystemAccount(entry.pw_uid, entry.pw_gid, is_other=True)


@contextmanager
def server_of_an_earlier_version(data_dir: Path, sockets: Path) -> Iterator[int]:
    """A server that trusts everybody on a socket elsewhere; its process."""
    cluster = data_dir / "postgres"
    (cluster / "pg_hba.conf").write_text("local all all trust\n")
    status = cluster.stat()
    account = SystemAccount(status.st_uid, status.st_gid, is_other=IS_ROOT)
    sockets.mkdir()
    give(sockets, account)
    folder = os.open(cluster, os.O_RDONLY)
    path = f"/proc/self/fd/{folder}" if IS_ROOT else str(cluster)
    command = [str(find_programs(account) / "postgres"), "-D", path, "-h", "", "-k", str(sockets)]
    child = spawn(command, account, folder, subprocess.DEVNULL)
    os.close(folder)
    try:
        while (found := read_postmaster(cluster)) is None or not found.is_ready:
            assert child.poll() is None
        yield child.pid
    finally:
        if (left := read_postmaster(cluster)) is not None:
            stop(left)
        child.wait()


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory that other users reach, as the former library's were."""
    folder = Path(tempfile.mkdtemp(prefix="igw-"))
    folder.chmod(0o755)
    yield folder / "sockets"
    shutil.rmtree(folder, ignore_errors=True)


async def test_a_server_left_by_an_earlier_version_is_started_anew(
    used_dir: Path, sockets: Path
) -> None:
    with server_of_an_earlier_version(used_dir, sockets) as former:
        (used_dir / "postgres/.handle_pids.json").write_text(json.dumps([2**22 + 1]))
        with embedded(used_dir) as server:
            assert server.pid != former
            assert await answer_of(server, "SELECT auth_method FROM pg_hba_file_rules") == "peer"


def test_a_gateway_of_an_earlier_version_that_still_runs_is_named(
    used_dir: Path, sockets: Path
) -> None:
    sleeping = [sys.executable, "-c", "input()", "gateway", "serve"]
    with (
        server_of_an_earlier_version(used_dir, sockets) as former,
        subprocess.Popen(sleeping, stdin=subprocess.PIPE) as gateway,
    ):
        (used_dir / "postgres/.handle_pids.json").write_text(json.dumps([gateway.pid]))
        with pytest.raises(ConfigurationError, match=str(gateway.pid)):
            EmbeddedPostgres(used_dir)
        assert psutil.pid_exists(former)
        gateway.communicate()


async def test_the_last_handle_stops_the_server(used_dir: Path) -> None:
    with embedded(used_dir) as first:
        with embedded(used_dir) as second:
            assert second.pid == first.pid
        assert await answer_of(first) == 1
        process = psutil.Process(first.pid)
    assert not process.is_running()


async def test_a_pid_file_whose_number_is_another_process_now_does_not_hinder_a_start(
    used_dir: Path,
) -> None:
    with embedded(used_dir):
        content = (used_dir / "postgres/postmaster.pid").read_text().splitlines()
    content[0] = str(os.getppid())
    (used_dir / "postgres/postmaster.pid").write_text("\n".join(content))
    with embedded(used_dir) as server:
        assert await answer_of(server) == 1


def test_a_start_after_a_kill_during_the_cluster_creation_succeeds(data_dir: Path) -> None:
    unfinished = data_dir / "postgres.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    with embedded(data_dir):
        assert not unfinished.exists()


def test_a_start_that_fails_says_why(used_dir: Path) -> None:
    (used_dir / "postgres/global/pg_control").unlink()
    with pytest.raises(ConfigurationError, match="could not find the database system"):
        EmbeddedPostgres(used_dir)


@AS_ROOT
def test_programs_in_a_closed_directory_are_copied_and_the_directory_stays_closed(
    data_dir: Path,
) -> None:
    data_dir.parent.chmod(0o755)
    package = find_programs(own_account()).parents[1]
    closed = data_dir / "closed"
    for name in (package.name, f"{package.name}.libs"):
        shutil.copytree(package.with_name(name), closed / name)
    closed.chmod(0o700)
    installed = closed / package.name / find_programs(own_account()).parent.name
    account = private_account()
    copied = [
        reachable_installation(installed, account, copies=data_dir / "copies") for _ in range(2)
    ]
    assert copied[0] == copied[1] != installed
    for program in ("initdb", "postgres"):
        ended = subprocess.run(
            [str(copied[0] / "bin" / program), "--version"],
            user=account.uid,
            group=account.gid,
            cwd="/",
            env={},
            capture_output=True,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (0, b"")
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert reachable_installation(installed, own_account()) == installed


@AS_ROOT
def test_a_copy_that_another_user_could_have_made_is_refused(data_dir: Path) -> None:
    installed = data_dir / "closed/installed"
    for part in ("bin/postgres", "bin/initdb", "lib/libpq.so", "share/postgres.bki"):
        (installed / part).parent.mkdir(parents=True, exist_ok=True)
        (installed / part).touch(mode=0o700)
    copies = data_dir / "copies"
    copies.mkdir()
    os.chown(copies, OTHER_USER, OTHER_USER)
    with pytest.raises(ConfigurationError, match="root"):
        reachable_installation(installed, private_account(), copies=copies)
