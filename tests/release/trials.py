"""Trials of the gateway as users install it, at the oldest packages, and with other Pythons."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway import __version__
from tests.release.archives import WHEEL, build, commit_time
from tests.release.environments import (
    TrialError,
    find_python,
    make_environment,
    run,
    try_gateway,
    uv,
)
from tests.release.packages import LOCK, PRODUCTION_LOCK, ROOT

PYPROJECT = ROOT / "pyproject.toml"
CHOSEN_TESTS = (
    "tests/money/test_money_amounts.py",
    "tests/generation/test_parameter_table.py",
    "tests/tooling/test_config.py",
)
"""Tests of values, settings and parameters, which need no Postgres; the trial itself has one."""


def try_installed(version: str) -> None:
    """Install the wheel with its lock into an empty folder, with a Python, and use it there."""
    with _trial(version) as (folder, python):
        uv("pip", "sync", "--quiet", "--require-hashes", "--python", python, LOCK, folder=folder)
        _install_wheel(folder, python)
        try_gateway(python, folder / "empty", __version__)


def try_floors(version: str) -> list[str]:
    """Try the oldest packages that pyproject.toml admits; return their names and versions."""
    with _trial(version) as (folder, python):
        floors = folder / "floors.txt"
        uv(
            *("pip", "compile", "--quiet", PYPROJECT, "--resolution", "lowest-direct"),
            *("--extra", "dev", "--python", python, "--no-header", "--no-annotate", "-o", floors),
            folder=folder,
        )
        uv("pip", "sync", "--quiet", "--python", python, floors, folder=folder)
        _install_wheel(folder, python)
        try_gateway(python, folder / "empty", __version__)
        run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CHOSEN_TESTS, folder=ROOT)
        return floors.read_text().split()


def resolve_wheels(version: str, platform: str = "x86_64-manylinux_2_28") -> int:
    """Check that a wheel of each package of production exists for a Python; return their number.

    Nothing is installed, so that the interpreter need not be on this machine.
    """
    with tempfile.TemporaryDirectory(prefix="wheels-") as name:
        resolved = uv(
            *("pip", "compile", "--quiet", PRODUCTION_LOCK, "--no-deps", "--only-binary", ":all:"),
            *("--python-version", version, "--python-platform", platform, "--no-annotate"),
            folder=Path(name),
        )
    return len(re.findall(r"^\S+==", resolved, re.MULTILINE))


@contextmanager
def _trial(version: str) -> Iterator[tuple[Path, Path]]:
    found = find_python(version)
    if found is None:
        raise TrialError(f"Python {version} was not found, neither on PATH nor in pyenv.")
    with tempfile.TemporaryDirectory(prefix="trial-") as name:
        folder = Path(name)
        yield folder, make_environment(folder, found)


def _install_wheel(folder: Path, python: Path) -> None:
    build(ROOT, folder / "dist", epoch=commit_time())
    wheel = folder / "dist" / WHEEL
    uv("pip", "install", "--quiet", "--no-deps", "--python", python, wheel, folder=folder)
    uv("pip", "check", "--quiet", "--python", python, folder=folder)
