"""The wheel and the sdist: built, and listed.

They have the time of the newest commit, so that two builds of one commit are equal.
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from gateway import __version__
from tests.release.packages import ROOT

STEM = f"image_gateway-{__version__}"
WHEEL = f"{STEM}-py3-none-any.whl"
SDIST = f"{STEM}.tar.gz"


class BuildError(Exception):
    """A build failed, or its result is not what it should be."""


def build(source: Path, target: Path, *, epoch: int) -> None:
    """Build both archives of the checkout `source` into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    _hatchling(source, target, "sdist", epoch)
    _hatchling(source, target, "wheel", epoch)


def rebuild_from_sdist(sdist: Path, folder: Path, *, epoch: int) -> Path:
    """Build a wheel from an sdist in an empty folder; return its path."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    _hatchling(folder / STEM, folder, "wheel", epoch)
    return folder / WHEEL


def _hatchling(source: Path, target: Path, kind: str, epoch: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", target.absolute()],
        cwd=source,
        env={"PATH": "/usr/bin:/bin", "SOURCE_DATE_EPOCH": str(epoch)},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise BuildError(f"The {kind} of {source} could not be built:\n{ended.stderr}")


def names_in(archive: Path) -> set[str]:
    """Return the names of the files in a wheel, or in an sdist below its folder."""
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as opened:
        return {one.name.removeprefix(f"{STEM}/") for one in opened.getmembers() if one.isfile()}


def commit_time() -> int:
    """Return the time of the newest commit, in seconds since 1970."""
    command = ["git", "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
