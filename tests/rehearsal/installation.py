"""An installation in an empty folder, made by the commands of docs/deploy.md alone.

The commands are read from the page. Changed in them are the addresses of services, which here have
other ports, and the vendor's, which is the stub provider.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import yaml  # type: ignore[import-untyped]  # ships without types

from tests.harness import free_port
from tests.limits_helpers import running_valkey
from tests.rehearsal.pages import REHEARSED, commands_of
from tests.rehearsal.programs import (
    PATH,
    ROOT,
    Postgres,
    run,
    running,
    running_nginx,
    running_postgres,
    running_prometheus,
    running_s3,
    until_reached,
)
from tests.stub_openai import StubControl, stub_process
from tests.tls_helpers import Authority

PAGE = "docs/deploy.md"
SERVE = "venv/bin/gateway serve"
SITE = ROOT / "deploy/nginx/image-gateway.conf"
SCRAPES = ROOT / "deploy/prometheus/prometheus.yml"
READY = 200
FOLLOW_SECONDS = 1200
OURS = ("GATEWAY_", "AWS_", "OTEL_", "OPENAI_")


@dataclass
class Replica:
    """A gateway of the installation, started by its line of the page."""

    process: subprocess.Popen[bytes]
    url: str


@dataclass
class Installation:
    """Addresses, processes and settings; `serving` are the page's lines that serve."""

    folder: Path
    postgres: Postgres
    stub: StubControl
    environment: dict[str, str]
    serving: Sequence[Sequence[str]]
    url: str = ""
    prometheus: str = ""
    replicas: list[Replica] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def key(self) -> str:
        """The tenant's API key."""
        return (self.folder / "website.key").read_text().strip()

    @property
    def database_url(self) -> str:
        """The address of the database, as its owner."""
        return self.environment["GATEWAY_DATABASE_URL"]

    def gateway(self, *arguments: str, **changes: str) -> str:
        """Run a command of the installed gateway; what it prints."""
        program = self.folder / "venv/bin/gateway"
        return run([program, *arguments], environment=self.environment | changes)

    def start(self, line: int, **changes: str) -> Replica:
        """Start the gateway of a line, and wait until it is ready."""
        command = self.serving[line]
        url = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
        log = self.folder / f"gateway-{line}.log"
        process = self.stack.enter_context(
            running(
                [self.folder / command[0], *command[1:]],
                log,
                environment=self.environment | changes,
            )
        )

        def is_ready() -> bool:
            try:
                return httpx2.get(f"{url}/ready", timeout=5).status_code == READY
            except httpx2.TransportError:
                return False

        until_reached(is_ready, process, log)
        return Replica(process, url)


def adapted(text: str, changes: Mapping[str, str]) -> str:
    """The text with other addresses; each one that is changed is in it."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextmanager
def installed(folder: Path, authority: Authority) -> Iterator[Installation]:
    """Start the services, follow the page in the folder, and serve with two gateways."""
    run(["make", "-C", ROOT, "dist"], environment={"HOME": str(folder)})
    shutil.copytree(ROOT / "dist", folder, dirs_exist_ok=True)
    ports = {name: free_port() for name in ("plain", "tls", "one", "two", "traces")}
    with ExitStack() as stack:
        postgres = stack.enter_context(running_postgres())
        valkey = stack.enter_context(running_valkey())
        s3 = stack.enter_context(running_s3(folder, "images"))
        stub = stack.enter_context(stub_process())
        changes = {
            "127.0.0.1:5432": f"127.0.0.1:{postgres.port}",
            "127.0.0.1:6379": f"127.0.0.1:{valkey.port}",
            "127.0.0.1:8333": f"127.0.0.1:{s3}",
            "127.0.0.1:4318": f"127.0.0.1:{ports['traces']}",
            "images.example.com": f"127.0.0.1:{ports['tls']}",
            "--port 8000": f"--port {ports['one']}",
            "--port 8001": f"--port {ports['two']}",
        }
        text = "\n".join(
            line for block in commands_of(ROOT / PAGE, REHEARSED[PAGE]) for line in block
        )
        commands = adapted(text, changes).splitlines()
        serving = [line.removesuffix("&").split() for line in commands if line.startswith(SERVE)]
        others = [line for line in commands if not line.startswith(SERVE)]
        environment = follow(others, folder, postgres)
        environment |= {"OPENAI_BASE_URL": stub.base_url}
        made = Installation(folder, postgres, stub, environment, serving, stack=stack)
        made.replicas = [made.start(line) for line in range(len(serving))]
        stack.enter_context(running_nginx(folder / "nginx", site(ports, folder, authority)))
        made.url = f"https://127.0.0.1:{ports['tls']}"
        scrapes(made, folder / "prometheus")
        made.prometheus = stack.enter_context(running_prometheus(folder / "prometheus"))
        yield made


def follow(
    commands: Sequence[str], folder: Path, postgres: Postgres, **environment: str
) -> dict[str, str]:
    """Run the commands in one shell, as the superuser of Postgres; the settings that they leave."""
    path = f"{folder / 'venv/bin'}:{postgres.bin}:{PATH}"
    own = {"PATH": path, "HOME": os.environ["HOME"], **postgres.superuser, **environment}
    # The package registry as this machine's pip is told to reach it.
    own |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    script = "\n".join(["set -euo pipefail", *commands, "env -0 > environment"])
    done = subprocess.run(
        ["bash", "-c", script],
        check=False,
        cwd=folder,
        env=own,
        capture_output=True,
        text=True,
        timeout=FOLLOW_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    left = (folder / "environment").read_bytes().decode().rstrip("\0").split("\0")
    found = dict(pair.split("=", 1) for pair in left)
    return {name: value for name, value in found.items() if name.startswith(OURS)}


def site(ports: Mapping[str, int], folder: Path, authority: Authority) -> str:
    """The repository's site for nginx, at this machine's addresses."""
    chain = str(authority.chain_of_server())
    text = re.sub(r"^ *listen \[::\]:.*\n", "", SITE.read_text(), flags=re.MULTILINE)
    return adapted(
        text,
        {
            "127.0.0.1:8000": f"127.0.0.1:{ports['one']}",
            "127.0.0.1:8001": f"127.0.0.1:{ports['two']}",
            "listen 80;": f"listen 127.0.0.1:{ports['plain']};",
            "listen 443 ": f"listen 127.0.0.1:{ports['tls']} ",
            "images.example.com": "127.0.0.1",
            "/etc/ssl/image-gateway/fullchain.pem": chain,
            "/etc/ssl/image-gateway/privkey.pem": chain,
            "/var/log/nginx": str(folder / "nginx"),
        },
    )


def scrapes(installation: Installation, folder: Path) -> None:
    """Write the repository's configuration of Prometheus, at this machine's addresses.

    It scrapes every second: a rate needs two scrapes.
    """
    folder.mkdir()
    config = yaml.safe_load(SCRAPES.read_text())
    config["global"] = dict.fromkeys(config["global"], "1s")
    config["rule_files"] = [str(ROOT / "deploy/alerts.yaml")]
    [job] = config["scrape_configs"]
    job["authorization"]["credentials_file"] = str(installation.folder / "metrics.key")
    del job["dns_sd_configs"]
    targets = [replica.url.removeprefix("http://") for replica in installation.replicas]
    job["static_configs"] = [{"targets": targets}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
