"""One worker: applies mutants to its own copy of the checkout and runs the tests that must notice.

Reads one JSON job a line from standard input and answers with one JSON line. Tests run in a child
forked from a process that has imported the gateway; the child patches the changed function. Where
that is not possible, pytest starts anew, which takes seconds more.
"""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.mutation import reporter
from tests.mutation.mutants import Mutant
from tests.mutation.patching import ImportedGateway, NotPatchableError

PLUGINS = ("_hypothesis_pytestplugin", "schemathesis.pytest.plugin", "pytest_asyncio.plugin")
QUICK = (
    *("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line", "-W", "ignore"),
    # It collects garbage at the end: a second, with all that is imported.
    *("-p", "tests.mutation.reporter", "-p", "no:unraisableexception"),
)
HANGS_AFTER_SECONDS = 30
"""At least; a test that takes half of its run's time hangs, and has noticed."""
BROKEN_IMPORT = "Error while loading conftest"
"""In the output of a mutant with which the gateway cannot even be imported."""
NOT_PATCHABLE = 100
"""The exit status of a child, beside pytest's own."""


class Worker:
    """Tries one mutant at a time."""

    def __init__(self, copy: Path) -> None:
        self._copy = copy
        self._finder = copy.parent / f"{copy.name}.finder"
        self._log = copy.parent / f"{copy.name}.log"
        self._gateway = ImportedGateway()
        os.environ[reporter.FILE] = str(self._finder)

    def answer(self, job: dict[str, Any]) -> dict[str, object]:
        """The outcome, the test that found the mutant, and the seconds that it took."""
        started = time.monotonic()
        self._finder.unlink(missing_ok=True)
        if job["mutant"] is None:
            outcome = self._run(job["tests"], job["seconds"])
        else:
            outcome = self._try(Mutant(**job["mutant"]), job["tests"], job["seconds"])
        finder = self._finder.read_text() if self._finder.exists() else ""
        if finder:  # though what comes after the test took too long
            outcome = "found"
        seconds = round(time.monotonic() - started, 1)
        return {"outcome": outcome, "finder": finder, "seconds": seconds}

    def _try(self, mutant: Mutant, tests: list[str], seconds: int) -> str:
        path = self._copy / mutant.source
        original = path.read_bytes()
        changed = mutant.apply(original)
        _write(path, changed)
        try:
            outcome = self._run(tests, seconds, patch_from=(path, original, changed))
            if outcome == "not patchable":
                return self._run(tests, seconds, anew=True)
            return outcome
        finally:
            _write(path, original)

    def _run(
        self,
        tests: list[str],
        seconds: int,
        *,
        patch_from: tuple[Path, bytes, bytes] | None = None,
        anew: bool = False,
    ) -> str:
        child = os.fork()
        if child == 0:
            self._be_child()
            options = [*QUICK, f"--timeout={max(HANGS_AFTER_SECONDS, seconds // 2)}", *tests]
            if anew:
                os.execv(sys.executable, [sys.executable, "-m", "pytest", *options])  # noqa: S606
            self._run_tests(options, patch_from)
        status = _wait(child, seconds)
        if status is None:
            return "unfinished"
        code = os.waitstatus_to_exitcode(status)
        if anew and code == pytest.ExitCode.USAGE_ERROR and BROKEN_IMPORT in self._log.read_text():
            return "found"
        if code in {pytest.ExitCode.NO_TESTS_COLLECTED, pytest.ExitCode.USAGE_ERROR}:
            raise SystemExit(f"No tests in {' '.join(tests)}.")
        if code == pytest.ExitCode.INTERNAL_ERROR:  # else every mutant would count as found
            raise SystemExit(f"pytest could not run {' '.join(tests)}.")
        if code == NOT_PATCHABLE:
            return "not patchable"
        return "survived" if code == pytest.ExitCode.OK else "found"

    def _be_child(self) -> None:
        os.setsid()  # so that what the tests started can be ended with them
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
        os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())

    def _run_tests(self, options: list[str], patch_from: tuple[Path, bytes, bytes] | None) -> None:
        """In the child: never returns."""
        try:
            if patch_from is not None:
                self._gateway.patch(*patch_from)
            code = int(pytest.main(options))
        except NotPatchableError:
            code = NOT_PATCHABLE
        sys.stdout.flush()
        os._exit(code)


def main() -> None:
    """Work until standard input ends."""
    copy = Path(sys.argv[1])
    os.chdir(copy)
    _import_tests(copy / "tests")
    worker = Worker(copy)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        sys.stdout.flush()


def _import_tests(folder: Path) -> None:
    """Import the tests under the names that pytest gives them: a child need not do it again."""
    found = sorted(folder.rglob("test_*.py"))
    sys.path[:0] = [str(folder), *sorted({str(path.parent) for path in found} - {str(folder)})]
    for name in (*PLUGINS, "conftest", *(path.stem for path in found)):
        importlib.import_module(name)


def _write(path: Path, content: bytes) -> None:
    """Write a module; bytecode is compared by size and second, and a change may alter neither."""
    path.write_bytes(content)
    for cached in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        cached.unlink()


def _wait(child: int, seconds: int) -> int | None:
    """The child's status; None where it took too long and was killed."""

    def too_long(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        return os.waitpid(child, 0)[1]
    except TimeoutError:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    main()
