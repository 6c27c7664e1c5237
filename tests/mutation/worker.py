"""One worker: applies mutants to its own copy of the checkout and runs the tests that must notice.

Reads one JSON job a line from standard input and answers with one JSON line. Tests run in a child
that is forked after the libraries are imported, and before anything of the gateway is.
"""

import importlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import pytest

from tests.mutation.mutants import Mutant

LIBRARIES = (
    *("fastapi", "mcp.server", "mcp.client.streamable_http", "openai", "sqlalchemy.ext.asyncio"),
    *("alembic.command", "asyncpg", "aiohttp", "hypothesis", "PIL.Image", "structlog", "typer"),
    *("obstore", "redis.asyncio", "uvicorn", "joserfc", "prometheus_client", "rich", "psutil"),
)
MUTANT_MIGRATION = Path("migrations/versions/9999_12_31_mutant.py")
_REVISION = re.compile(r'^revision = "(\w+)"', re.MULTILINE)
_FOLLOWS = re.compile(r'^down_revision = "(\w+)"', re.MULTILINE)


def main() -> None:
    """Work until standard input ends."""
    copy, seconds = Path(sys.argv[1]), int(sys.argv[2])
    os.chdir(copy)
    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        mutant = None if job["mutant"] is None else Mutant(**job["mutant"])
        started = time.monotonic()
        outcome = _try(mutant, job["definition"], job["tests"], copy, seconds)
        answer = {"outcome": outcome, "seconds": round(time.monotonic() - started, 1)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _try(mutant: Mutant | None, definition: str, tests: list[str], copy: Path, seconds: int) -> str:
    """`found`, `survived` or `hung`; without a mutant `survived` says that the tests pass."""
    if mutant is None:
        return _run(tests, copy, seconds)
    if mutant.language == "sql":
        changed = mutant.apply(definition.encode()).decode()
        MUTANT_MIGRATION.write_text(_migration(changed, _newest_revision()))
        try:
            return _run(tests, copy, seconds)
        finally:
            MUTANT_MIGRATION.unlink()
    path = Path(mutant.source)
    original = path.read_bytes()
    path.write_bytes(mutant.apply(original))
    try:
        return _run(tests, copy, seconds, forget=path)
    finally:
        path.write_bytes(original)
        _forget_bytecode(path)


def _run(tests: list[str], copy: Path, seconds: int, forget: Path | None = None) -> str:
    if forget is not None:
        _forget_bytecode(forget)
    child = os.fork()
    if child == 0:
        _run_tests(tests, copy)
    status = _wait(child, seconds)
    if status is None:
        return "hung"
    code = os.waitstatus_to_exitcode(status)
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise SystemExit(f"No tests in {' '.join(tests)}.")
    return "survived" if code == pytest.ExitCode.OK else "found"


def _run_tests(tests: list[str], copy: Path) -> None:
    """In the child: never returns."""
    os.setsid()  # so that what the tests started can be ended with them
    log = os.open(copy.parent / f"{copy.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.close(sys.stdin.fileno())
    quick = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line", "-W", "ignore")
    code = pytest.main([*quick, *tests])
    sys.stdout.flush()
    os._exit(int(code))


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


def _forget_bytecode(path: Path) -> None:
    """Bytecode is compared by size and second: a change may alter neither."""
    for cached in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        cached.unlink()


def _newest_revision() -> str:
    """The one revision that no other follows."""
    texts = [path.read_text() for path in MUTANT_MIGRATION.parent.glob("2*.py")]
    revisions = {found for text in texts for found in _REVISION.findall(text)}
    followed = {found for text in texts for found in _FOLLOWS.findall(text)}
    (newest,) = revisions - followed
    return str(newest)


def _migration(statement: str, below: str) -> str:
    return (
        '"""A mutant."""\n\nfrom alembic import op\n\n'
        f'revision = "mutant"\ndown_revision = {below!r}\n\nSTATEMENT = {statement!r}\n\n\n'
        "def upgrade() -> None:\n    op.get_bind().exec_driver_sql(STATEMENT)\n"
    )


if __name__ == "__main__":
    main()
