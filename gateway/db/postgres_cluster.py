"""One cluster of the embedded Postgres: initialisation, access rules, start and stop."""

import os
import pwd
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships without types

from gateway.db import postgres_programs as programs
from gateway.db.postgres_account import (
    SystemAccount,
    give,
    initdb_account,
    own_login,
    private_account,
)
from gateway.errors import ConfigurationError

PID_FILE_LINES = 8
STOP_SECONDS = 60
POLL_SECONDS = 0.01
LOG_TAIL_BYTES = 4096
COMPLAINTS = ("FATAL:", "PANIC:", "postgres: ", "initdb: error:")


@dataclass(frozen=True, slots=True)
class Postmaster:
    """A running server as described in its pid file."""

    process: psutil.Process
    socket_dir: str
    is_ready: bool

    def is_running(self) -> bool:
        """Tell if the process is alive; a zombie is not."""
        try:
            return bool(self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


def read_postmaster(pgdata: Path) -> Postmaster | None:
    """Find the server of this cluster; None if none is running."""
    try:
        text = (pgdata / "postmaster.pid").read_text()
        lines = [line.strip() for line in text.splitlines()]
        found = Postmaster(psutil.Process(int(lines[0])), *_state(lines))
        is_here = pgdata.samefile(found.process.cwd())
    except (FileNotFoundError, psutil.Error, LookupError, ValueError):
        return None
    return found if is_here and found.is_running() else None


def forget_reused_pid(pgdata: Path) -> None:
    """Remove the pid file of a dead server if another process has its number now.

    Postgres would take that process for a running server and refuse to start. Other pid files
    stay: Postgres needs them to find the remains of a killed server.
    """
    path = pgdata / "postmaster.pid"
    with suppress(FileNotFoundError, LookupError, ValueError):
        if psutil.pid_exists(int(path.read_text().split()[0])):
            path.unlink()


def _state(lines: list[str]) -> tuple[str, bool]:
    """Parse a pid file: the socket's directory, and True if the server accepts connections."""
    known = lines + [""] * (PID_FILE_LINES - len(lines))
    return known[4], known[7] == "ready"


def initialise(pgdata: Path) -> None:
    """Create a cluster atomically, even if the process is killed meanwhile."""
    unfinished = pgdata.with_name("postgres.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    account = initdb_account()
    give(unfinished, account)
    folder = os.open(unfinished, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        command = programs.initdb_command(
            programs.find_programs(account), programs.passed_path(unfinished, folder)
        )
        child = spawn(command, account, folder, subprocess.PIPE)
        printed, _ = child.communicate()
    finally:
        os.close(folder)
    if child.returncode != 0:
        raise ConfigurationError(
            f"The embedded Postgres could not be set up in {pgdata}: "
            f"{_last_line(printed.decode(errors='replace'))}"
        )
    give(unfinished, private_account())
    unfinished.rename(pgdata)  # over an empty directory, or none


def spawn(
    command: list[str], account: SystemAccount, folder: int, output: int
) -> "subprocess.Popen[bytes]":
    """Start a program of Postgres in a new session, so that Ctrl-C does not reach it."""
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]  # noqa: S603 - our own
        command,
        cwd="/",
        env=programs.ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=[folder],
        start_new_session=True,
        umask=0o077,
        **account.popen_options,
    )


def write_access_rules(folder: int, account: SystemAccount) -> None:
    """Admit the user of this process and root, by the kernel's peer credentials.

    Written at every start: clusters of earlier versions admitted every local user.
    """
    allowed = {own_login(), pwd.getpwuid(0).pw_name}
    rules = {
        "pg_hba.conf": "local all all peer map=gateway\n",
        "pg_ident.conf": "".join(f'gateway "{login}" all\n' for login in sorted(allowed)),
    }
    for name, content in rules.items():
        # A new file, not an overwritten one: a less trusted user may own the directory.
        with suppress(FileNotFoundError):
            os.unlink(f"{name}.new", dir_fd=folder)
        new = os.open(f"{name}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
        with os.fdopen(new, "w") as file:
            file.write(content)
            if account.is_other:
                os.fchown(new, account.uid, account.gid)
        os.rename(f"{name}.new", name, src_dir_fd=folder, dst_dir_fd=folder)


def stop(postmaster: Postmaster) -> None:
    """Stop a server by a fast shutdown, then an immediate one, then a kill, with timeouts."""
    for number, seconds in (
        (signal.SIGINT, STOP_SECONDS),
        (signal.SIGQUIT, STOP_SECONDS),
        (signal.SIGKILL, STOP_SECONDS),
    ):
        if not postmaster.is_running():
            return
        with suppress(psutil.NoSuchProcess):
            postmaster.process.send_signal(number)
        deadline = time.monotonic() + seconds
        while postmaster.is_running() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def last_complaint(pgdata: Path) -> str:
    """Return the line of a cluster's log with the reason of a failed start."""
    with (pgdata / "log").open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
        return _last_line(file.read().decode(errors="replace"))


def _last_line(text: str) -> str:
    """Return Postgres' last error line, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    complaints = [line for line in lines if any(mark in line for mark in COMPLAINTS)]
    return (complaints or lines or ["It ended without a message."])[-1]
