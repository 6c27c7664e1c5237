"""Files for deployment: each is checked by the tool that will read it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tls_helpers import Authority

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
TOOLS = ROOT / ".venv/deploy"
EXPOSURE = 2.0
"""The most that `systemd-analyze security` may say, of 10; below 2.5 it says "OK"."""

needs_tools = pytest.mark.skipif(
    not (TOOLS / ".ready").exists(),
    reason="the tools that check deploy/ are not installed: make deploy-tools",
)


def needs(program: str) -> pytest.MarkDecorator:
    """Skip a test where a program of the system is missing."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    return pytest.mark.skipif(found is None, reason=f"{program} is not installed")


def run(*command: str | Path, **environment: str) -> str:
    """Run a checker; its output, of both streams, if it is content."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    ended = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env={"PATH": path, "HOME": "/tmp"} | environment,  # noqa: S108 - not written to
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@needs_tools
def test_the_chart_renders_valid_objects_and_the_manifests_are_what_it_renders() -> None:
    run(TOOLS / "bin/python", "tests/deploy/charts.py", "--check")


@needs_tools
def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    run(TOOLS / "bin/hadolint", "Dockerfile")


@needs_tools
def test_compose_reads_its_file_with_the_example_filled_in(tmp_path: Path) -> None:
    copy = tmp_path / "deploy"
    shutil.copytree(DEPLOY, copy)
    example = (copy / "compose/example.env").read_text()
    filled = re.sub(r"^([A-Z0-9_]+)=$", r"\1=filled-in", example, flags=re.MULTILINE)
    (copy / "compose/.env").write_text(filled)
    shown = run(
        TOOLS / "bin/docker-compose",
        *("--env-file", copy / "compose/.env", "-f", copy / "compose.yaml"),
        *("--profile", "monitoring", "config", "--format", "json"),
    )
    services = json.loads(shown)["services"]
    mounted = [
        Path(volume["source"])
        for service in services.values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    ]
    made_by_hand = {copy / "compose/metrics.key"}
    assert [path for path in mounted if not path.exists() and path not in made_by_hand] == []
    assert services["gateway"]["read_only"] is True


@needs("nginx")
def test_nginx_accepts_its_site(tmp_path: Path, one_authority: Authority) -> None:
    chain = str(one_authority.chain_of_server())
    site = (DEPLOY / "nginx/image-gateway.conf").read_text()
    site = site.replace("/etc/ssl/image-gateway/fullchain.pem", chain)
    site = site.replace("/etc/ssl/image-gateway/privkey.pem", chain)
    site = site.replace("/var/log/nginx", str(tmp_path))
    (tmp_path / "site.conf").write_text(site)
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log {tmp_path}/error.log;\n"
        f"events {{}}\nhttp {{ include {tmp_path}/site.conf; }}\n"
    )
    run("nginx", "-t", "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log")


@needs("caddy")
@pytest.mark.parametrize("file", ["caddy/Caddyfile", "compose/Caddyfile"])
def test_caddy_accepts_its_file(tmp_path: Path, file: str) -> None:
    run(
        *("caddy", "validate", "--config", DEPLOY / file, "--adapter", "caddyfile"),
        XDG_DATA_HOME=str(tmp_path),
        XDG_CONFIG_HOME=str(tmp_path),
    )


@needs("systemd-analyze")
def test_the_unit_is_valid_and_shut_in(tmp_path: Path) -> None:
    unit = (DEPLOY / "systemd/image-gateway.service").read_text()
    copy = tmp_path / "image-gateway.service"
    # The program must exist; another one stands for it.
    copy.write_text(unit.replace("/opt/image-gateway/bin/gateway", sys.executable))
    said = run("systemd-analyze", "verify", copy)
    assert "image-gateway.service" not in said, said
    said = run("systemd-analyze", "security", "--offline=true", copy)
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert level is not None, said
    assert float(level[1]) <= EXPOSURE
