"""The workflow of continuous integration: linted, and with every supported Python."""

import subprocess
import tomllib
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.release.__main__ import PYTHONS
from tests.release.packages import ROOT

WORKFLOWS = ROOT / ".github/workflows"
ACTIONLINT = ROOT / ".venv/release/bin/actionlint"


@pytest.mark.skipif(
    not ACTIONLINT.exists(),
    reason="the tools for releases are not installed: make release-tools",
)
def test_actionlint_finds_nothing() -> None:
    files = sorted(WORKFLOWS.glob("*.yml"))
    assert files
    linted = subprocess.run(
        [ACTIONLINT, "-shellcheck=", "-pyflakes=", *files],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert linted.returncode == 0, linted.stdout.decode()


def test_it_runs_every_python_that_the_package_admits() -> None:
    workflow: dict[str, Any] = yaml.safe_load((WORKFLOWS / "ci.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["check-and-test"]["strategy"]["matrix"]
    assert tuple(matrix["python"]) == PYTHONS
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={PYTHONS[0]}"
    named = {f"Programming Language :: Python :: {one}" for one in PYTHONS}
    assert named <= set(project["classifiers"])
