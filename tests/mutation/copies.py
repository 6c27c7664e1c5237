"""Copies of the checkout, each with a worker process and a Postgres of its own."""

import asyncio
import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
import venv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from gateway.db.addresses import create_engine, database_url
from gateway.db.embedded import EmbeddedPostgres
from tests.harness import TEMPLATE, TEMPLATE_READY, PostgresServer
from tests.mutation.mutants import Mutant

NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
MEMORY = Path("/dev/shm")  # noqa: S108 - in a new folder with a name of its own


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one run of tests."""

    outcome: str
    """`found`, `survived`, `unfinished` (out of time, nothing failed until then) or `unsound` (the
    test fails without the mutant too)."""
    finder: str
    """The id of the test that failed."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that tries mutants in its own copy, one at a time."""

    process: subprocess.Popen[str]
    copy: Path
    owner_url: str

    def run(
        self, mutant: Mutant | None, definition: str, tests: Sequence[str], *, seconds: int
    ) -> Answer:
        """Run the tests with the mutant, `seconds` at most; the first failure ends the run.

        `definition` is the unchanged SQL function of a mutant in SQL.
        """
        if mutant is None or mutant.language != "sql":
            return self._ask(mutant, tests, seconds)
        asyncio.run(_define(self.owner_url, mutant.apply(definition.encode()).decode()))
        try:
            return self._ask(None, tests, seconds)
        finally:
            asyncio.run(_define(self.owner_url, definition))

    def _ask(self, mutant: Mutant | None, tests: Sequence[str], seconds: int) -> Answer:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {
            "mutant": None if mutant is None else asdict(mutant),
            "tests": list(tests),
            "seconds": seconds,
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A worker ended. Its last output:\n{self.last_output()}")
        return Answer(**json.loads(line))

    def last_output(self) -> str:
        """The output of the last test run."""
        log = self.copy.parent / f"{self.copy.name}.log"
        return log.read_text(errors="replace") if log.exists() else ""


@contextmanager
def running_worker(root: Path, copy: Path) -> Iterator[Worker]:
    """Copy the checkout at `root`, and start a Postgres and a worker for it."""
    _copy_tree(root, copy)
    in_memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    data = Path(tempfile.mkdtemp(prefix="mutants-", dir=in_memory))
    data.chmod(0o755)  # started by root, Postgres runs as a user of its own
    postgres = EmbeddedPostgres(data)
    url = postgres.owner_url("postgres").render_as_string(hide_password=False)
    asyncio.run(PostgresServer(url).prepare())
    python = _environment(copy)
    process = subprocess.Popen(
        [python, "-m", "tests.mutation.worker", str(copy)],
        cwd=copy,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={
            **{name: value for name, value in os.environ.items() if name != NO_BYTECODE},
            "GATEWAY_TEST_DATABASE_URL": url,
            TEMPLATE_READY: "1",
        },
    )
    try:
        yield Worker(process, copy, url)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.wait()
        asyncio.run(postgres.close())
        shutil.rmtree(data, ignore_errors=True)


def _environment(copy: Path) -> Path:
    """Make an environment with the installed packages and the copy's gateway; return its Python.

    The sandboxed decoder ignores `PYTHONPATH`, so that it would import the gateway of the checkout.
    """
    home = copy.parent / f"{copy.name}.python"
    venv.create(home, symlinks=True)
    here = {"base": str(home), "platbase": str(home)}
    packages = Path(sysconfig.get_path("purelib", vars=here))
    paths = (copy, sysconfig.get_path("purelib"))
    (packages / "copy.pth").write_text("".join(f"{path}\n" for path in paths))
    return home / "bin" / "python"


async def sql_definitions(owner_url: str) -> dict[str, str]:
    """Every SQL function as the migrations leave it, by name; of several by one name, the last."""
    engine = create_engine(database_url(owner_url).set(database=TEMPLATE), role=None)
    statement = text(
        "SELECT p.proname, pg_get_functiondef(p.oid) FROM pg_proc p "
        "JOIN pg_namespace n ON n.oid = p.pronamespace "
        "WHERE n.nspname = 'public' AND p.prokind = 'f' ORDER BY p.proname, p.pronargs"
    )
    try:
        async with engine.connect() as connection:
            rows = await connection.execute(statement)
            return {str(name): str(definition) for name, definition in rows.all()}
    finally:
        await engine.dispose()


async def refused_definitions(owner_url: str, definitions: Iterable[str]) -> set[str]:
    """Try each definition of a function, and undo it; return those that Postgres refuses."""
    engine = create_engine(database_url(owner_url).set(database=TEMPLATE), role=None)
    refused = set()
    try:
        async with engine.connect() as connection:
            for definition in definitions:
                try:
                    await connection.exec_driver_sql(definition)
                except DBAPIError:
                    refused.add(definition)
                await connection.rollback()
    finally:
        await engine.dispose()
    return refused


async def _define(owner_url: str, function: str) -> None:
    """Create or replace an SQL function in the database that every test's is copied from."""
    engine = create_engine(database_url(owner_url).set(database=TEMPLATE), role=None)
    try:
        async with engine.begin() as connection:
            await connection.exec_driver_sql(function)
    finally:
        await engine.dispose()


def _copy_tree(root: Path, copy: Path) -> None:
    for name in _paths(root):
        if (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)


def _paths(root: Path) -> list[str]:
    """The files that git has or would add; outside a git checkout, every file not hidden."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        every = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        return [
            path.as_posix()
            for path in every
            if not any(part.startswith(".") for part in path.parts[:-1])
        ]
    return [name for name in listed.stdout.split("\0") if name]
