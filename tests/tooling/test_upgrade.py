"""An upgrade without downtime: the former release and this one serve one database side by side.

The former release is real: its code is taken from the history of this repository, and runs with the
packages of this environment. What a release sends to the database cannot be told from the schema
alone, so that a rule about migrations would not find a function that refuses an older caller. A
checkout without history has no former release, and skips the test.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from gateway.db.revisions import migrations_dir, newest_revision
from tests.harness import (
    MASTER_KEY,
    GatewayProcess,
    PostgresServer,
    free_port,
    run_sql,
)
from tests.load_helpers import Arrivals
from tests.money_helpers import eventually
from tests.rehearsal.books import expect_agreeing_books
from tests.rehearsal.programs import run, running
from tests.stub_openai import Stub
from tests.tooling.test_rolling_restarts import LOOK_SECONDS, Balancer

ROOT = Path(__file__).resolve().parents[2]
PER_SECOND = 10
EACH = 15
"""Answers of each gateway that a step waits for."""
STOP_SECONDS = 60


def git(*arguments: str) -> str:
    """Ask git about the repository; the test is skipped where it does not know."""
    asked = subprocess.run(
        ["git", "-C", ROOT, *arguments], check=False, capture_output=True, text=True
    )
    if asked.returncode != 0:
        pytest.skip(f"this checkout has no history of a former release: {asked.stderr.strip()}")
    return asked.stdout.strip()


def former_commit() -> str:
    """The newest tag without the newest migration; before the first tag, the commit before it."""
    [newest] = (migrations_dir() / "versions").glob(f"{newest_revision()}*.py")
    path = str(newest.relative_to(ROOT))
    for tag in git("tag", "--merged", "HEAD", "--sort=-creatordate").splitlines():
        if not git("ls-tree", tag, path):
            return tag
    added = git("log", "--diff-filter=A", "--format=%H", "-1", "--", path)
    return git("rev-parse", "--verify", f"{added}^")


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the former release."""
    commit = former_commit()
    folder = tmp_path_factory.mktemp("former")
    archive = folder / "code.tar"
    git("archive", f"--output={archive}", commit, "gateway", "migrations")
    run(["tar", "--extract", "--file", archive, "--directory", folder])
    return folder


@dataclass
class Upgrade:
    """Two releases of the gateway as processes on one database; which of them answered what."""

    environment: dict[str, str]
    folder: Path
    stack: ExitStack
    balancer: Balancer
    served: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def _command(*arguments: str) -> list[str]:
        # The code of the working directory, before that of the environment.
        return [sys.executable, "-m", "gateway", *arguments]

    def command(self, code: Path, *arguments: str) -> str:
        """Run a command of a release; what it prints."""
        return run(self._command(*arguments), cwd=code, environment=self.environment)

    async def start(self, code: Path) -> GatewayProcess:
        """Start a gateway of a release and send it its share of the load."""
        port = free_port()
        log = self.folder / f"gateway-{port}.log"
        command = self._command("serve", "--port", str(port))
        started = self.stack.enter_context(
            running(command, log, cwd=code, environment=self.environment)
        )
        gateway = GatewayProcess(started, f"http://127.0.0.1:{port}", log)
        await gateway.until_ready(tries=2400)
        self.balancer.replicas.append(gateway.base_url)
        return gateway

    async def stop(self, gateway: GatewayProcess) -> None:
        """Stop a gateway as a balancer would see it."""
        gateway.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(gateway.process.wait, STOP_SECONDS) == 0
        self.balancer.replicas.remove(gateway.base_url)

    async def send(self, number: int) -> httpx2.Response:
        """Send a request to the next gateway that takes it."""
        answer = await self.balancer.send(number)
        self.served[f"{answer.url.scheme}://{answer.url.host}:{answer.url.port}"] += 1
        return answer

    async def until_served(self, *gateways: GatewayProcess) -> None:
        """Wait until each of these gateways has answered some more requests."""
        goal = {one.base_url: self.served[one.base_url] + EACH for one in gateways}

        async def reached() -> bool:
            return all(self.served[url] >= number for url, number in goal.items())

        await eventually(reached, 60)


@pytest.fixture
async def empty(postgres: PostgresServer) -> AsyncIterator[str]:
    """The owner's address of an empty database."""
    url = await postgres.create(template="template0")
    yield url
    await postgres.drop(url)


@pytest.fixture
def upgrade(empty: str, stub: Stub, tmp_path: Path) -> Iterator[Upgrade]:
    """A database of nothing yet, and no gateway."""
    environment = {
        "PATH": os.environ["PATH"],
        "GATEWAY_DATABASE_URL": empty,
        "GATEWAY_DATA_DIR": str(tmp_path / "data"),
        "GATEWAY_MASTER_KEY": MASTER_KEY,
        "GATEWAY_DATABASE_POOL_SIZE": "2",
        "GATEWAY_LOG_FORMAT": "json",
        "GATEWAY_SHUTDOWN_DELAY_SECONDS": "1",
        "GATEWAY_ADMISSION_TIMEOUT_MS": "60000",
        "OPENAI_API_KEY": "sk-upgrade-7d1f",
        "OPENAI_BASE_URL": stub.base_url,
    }
    with ExitStack() as stack:
        yield Upgrade(environment, tmp_path, stack, Balancer(""))


@pytest.mark.timeout(600)
async def test_two_releases_serve_one_database_and_the_books_agree(
    upgrade: Upgrade, former: Path, empty: str, stub: Stub
) -> None:
    upgrade.command(former, "migrate")
    upgrade.command(former, "tenants", "create", "acme")
    upgrade.command(former, "budgets", "set", "--tenant", "acme", "--limit-usd", "1000")
    made = json.loads(upgrade.command(former, "keys", "create", "--tenant", "acme", "--json"))
    upgrade.balancer.key = made["key"]
    [before] = await run_sql(empty, "SELECT version_num FROM alembic_version")
    first, second = await upgrade.start(former), await upgrade.start(former)
    arrivals = Arrivals(upgrade.send, 1 / PER_SECOND)
    looks = Arrivals(lambda _: upgrade.balancer.look(), LOOK_SECONDS)
    arrivals.begin()
    looks.begin()
    await upgrade.until_served(first, second)

    await asyncio.to_thread(upgrade.command, ROOT, "migrate")
    [after] = await run_sql(empty, "SELECT version_num FROM alembic_version")
    assert (before.version_num != after.version_num, after.version_num) == (True, newest_revision())
    await upgrade.until_served(first, second)  # the former release alone, on the new schema
    await upgrade.stop(first)
    third = await upgrade.start(ROOT)
    await upgrade.until_served(second, third)  # side by side
    await upgrade.stop(second)
    fourth = await upgrade.start(ROOT)
    await upgrade.until_served(third, fourth)

    await looks.end()
    answers = await arrivals.end()
    assert Counter(answer.status_code for answer in answers) == {200: len(answers)}
    assert await expect_agreeing_books(empty, stub.bill) == len(answers)
    headers = {"Authorization": f"Bearer {made['key']}"}
    async with httpx2.AsyncClient(base_url=fourth.base_url, headers=headers) as http:
        total = (await http.get("/v1/usage")).json()["total"]
    assert total["requests"] == len(answers)
