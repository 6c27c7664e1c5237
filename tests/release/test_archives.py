"""Wheel and sdist: what is in them, and that they repeat byte for byte."""

import shutil
import subprocess
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from gateway import __version__
from tests.release.archives import SDIST, STEM, WHEEL, build, names_in, rebuild_from_sdist
from tests.release.packages import ROOT

EPOCH = 1_790_000_000
IN_SDIST = ("gateway/", "migrations/", "docs/")
BESIDE_IN_SDIST = {
    *(".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md", "pyproject.toml"),
    *("PKG-INFO", "requirements.lock", "requirements-production.lock"),
}
PLANTED = (
    *(".env", "gateway/.env", "gateway/__pycache__/main.cpython-311.pyc", "docs/.DS_Store"),
    *("tests/test_planted.py", "deploy/compose/.env", "gateway/console/.mypy_cache/planted.json"),
)
"""Files that a developer's folder may have, and no archive."""


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The names of the files in git, without those that are deleted here."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def built(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both archives, of a copy of the checkout with planted files."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in tracked:
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    for name in PLANTED:
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("planted", encoding="utf-8")
    build(copy, copy / "dist", epoch=EPOCH)
    return copy / "dist"


def test_the_wheel_has_every_file_of_the_package_and_no_other(
    built: Path, tracked: list[str]
) -> None:
    package = {name for name in tracked if name.startswith("gateway/")}
    migrations = {f"gateway/{name}" for name in tracked if name.startswith("migrations/")}
    names = names_in(built / WHEEL)
    described = {name for name in names if name.startswith(f"{STEM}.dist-info/")}
    assert names - described == package | migrations
    # The kinds that a list of Python files would miss.
    suffixes = {Path(name).suffix for name in names}
    assert {".sql", ".html", ".css", ".js", ".svg", ".toml", ".mako", ".typed"} <= suffixes
    licences = {name.removeprefix(f"{STEM}.dist-info/licenses/") for name in described}
    assert {"LICENSE", "gateway/console/static/vendor/htmx.LICENSE.txt"} <= licences


def test_the_sdist_has_the_package_its_documentation_and_locks(
    built: Path, tracked: list[str]
) -> None:
    expected = {name for name in tracked if name.startswith(IN_SDIST)} | BESIDE_IN_SDIST
    assert names_in(built / SDIST) == expected


def test_a_second_build_of_the_checkout_is_equal(built: Path, tmp_path: Path) -> None:
    build(built.parent, tmp_path, epoch=EPOCH)
    for name in (WHEEL, SDIST):
        assert (tmp_path / name).read_bytes() == (built / name).read_bytes(), name


def test_the_sdist_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    again = rebuild_from_sdist(built / SDIST, tmp_path, epoch=EPOCH)
    assert again.read_bytes() == (built / WHEEL).read_bytes()


def test_the_wheel_says_its_version_licence_python_and_command(built: Path) -> None:
    with zipfile.ZipFile(built / WHEEL) as wheel:
        metadata = message_from_bytes(wheel.read(f"{STEM}.dist-info/METADATA"))
        commands = wheel.read(f"{STEM}.dist-info/entry_points.txt").decode()
    assert {name: metadata[name] for name in ("Name", "Version", "Requires-Python")} == {
        "Name": "image-gateway",
        "Version": __version__,
        "Requires-Python": ">=3.11",
    }
    assert metadata["License-Expression"] == "Apache-2.0 AND 0BSD AND ISC"
    assert commands.split() == ["[console_scripts]", "gateway", "=", "gateway.cli:main"]
