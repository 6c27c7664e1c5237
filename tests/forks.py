"""Forks of a process that has imported the command `gateway`.

The imports take seconds, most of the time of a command or of a gateway's start. Apart from them, a
fork does all that a new process does. It inherits no state of the tests, since the process that is
forked has imported the command and nothing else.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from gateway.cli import main
from gateway.cli.app import COMMANDS

FORKS = multiprocessing.get_context("forkserver")
# httpcore2: imported by the first client. pytest: every fork imports what its parent began with.
COMMAND_MODULES = {f"gateway.cli.{entry.place.split(':')[0]}" for entry in COMMANDS.values()}
FORKS.set_forkserver_preload(
    [*sorted(COMMAND_MODULES), "gateway.opening", "httpcore2", "tests.forks", "pytest"]
)
KEPT = ("PATH", "HOME", "LANG", "SSL_CERT_FILE")
"""The variables that processes inherit from the tests' own environment."""


class Forked:
    """A running fork, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid = process.pid

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired("gateway", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def fork_gateway(
    arguments: list[str],
    environment: dict[str, str],
    *,
    out: Path,
    err: Path,
    stdin: Path = Path(os.devnull),
    folder: Path | None = None,
) -> Forked:
    """Start `gateway …` with only this environment; `out` and `err` are appended to."""
    process = FORKS.Process(
        target=_be_gateway,
        args=(arguments, environment, folder or Path.cwd()),
        kwargs={"out": out, "err": err, "stdin": stdin},
    )
    process.start()
    return Forked(process)


def _be_gateway(
    arguments: list[str],
    environment: dict[str, str],
    folder: Path,
    *,
    out: Path,
    err: Path,
    stdin: Path,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.stdin = stdin.open()
    for number, file in ((1, out), (2, err)):
        # Programs that commands start (Postgres) write to the descriptors.
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    sys.stdout, sys.stderr = out.open("a", buffering=1), err.open("a", buffering=1)
    sys.argv = ["gateway", *arguments]
    main()
