"""The commands of a release, as `python -m tests.release COMMAND` or by their make targets."""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.release.archives import (
    SDIST,
    STEM,
    WHEEL,
    BuildError,
    build,
    commit_time,
    rebuild_from_sdist,
)
from tests.release.environments import TrialError, find_python
from tests.release.licences import all_licensed, read_rules, refused, report
from tests.release.packages import LOCK, PRODUCTION_LOCK, ROOT
from tests.release.sbom import bill_of_materials
from tests.release.tags import tag_problem
from tests.release.trials import resolve_wheels, try_floors, try_installed

CHANGELOG = ROOT / "CHANGELOG.md"
DIST = ROOT / "dist"
OLDEST = "3.11"
PYTHONS = (OLDEST, "3.12", "3.13", "3.14")


def main() -> None:
    """Run a command; exit status 1, with the reason, if it fails."""
    commands: Mapping[str, Callable[[argparse.Namespace], None]] = {
        "check": _check,
        "dist": _dist,
        "sbom": _sbom,
        "try": _try,
        "floors": _floors,
        "pythons": _pythons,
    }
    parser = argparse.ArgumentParser(prog="python -m tests.release", description=__doc__)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}")
    parser.add_argument("--tag", default="")
    options = parser.parse_args()
    try:
        commands[options.command](options)
    except (TrialError, BuildError) as error:
        sys.exit(str(error))


def _check(options: argparse.Namespace) -> None:
    """Refuse a tag that is not the version's, or a version that the changelog does not date."""
    if problem := tag_problem(options.tag, CHANGELOG.read_text(encoding="utf-8")):
        sys.exit(problem)


def _dist(_options: argparse.Namespace) -> None:
    """Build both archives, and compare the wheel with one built from the sdist."""
    shutil.rmtree(DIST, ignore_errors=True)
    epoch = commit_time()
    build(ROOT, DIST, epoch=epoch)
    with tempfile.TemporaryDirectory(prefix="sdist-") as name:
        again = rebuild_from_sdist(DIST / SDIST, Path(name), epoch=epoch)
        if again.read_bytes() != (DIST / WHEEL).read_bytes():
            raise BuildError(f"{SDIST} builds another wheel than the checkout.")
    for lock in (LOCK, PRODUCTION_LOCK):
        shutil.copy(lock, DIST / f"{STEM}.{lock.name}")
    print("\n".join(sorted(path.name for path in DIST.iterdir())))


def _sbom(_options: argparse.Namespace) -> None:
    """Write the bill of materials and the licences, if all of these are allowed."""
    rules = read_rules()
    if problems := list(refused(all_licensed(rules), rules)):
        sys.exit("\n".join(problems))
    DIST.mkdir(exist_ok=True)
    written = {f"{STEM}.cdx.json": bill_of_materials(), f"{STEM}.licences.md": report(rules)}
    for name, text in written.items():
        (DIST / name).write_text(text, encoding="utf-8")
        print(f"dist/{name}")


def _try(options: argparse.Namespace) -> None:
    try_installed(options.python)
    print(f"Python {options.python}: installed with its lock, image by REST and by MCP")


def _floors(options: argparse.Namespace) -> None:
    packages = try_floors(options.python)
    print(f"Python {options.python}: works with the oldest of {len(packages)} packages")


def _pythons(_options: argparse.Namespace) -> None:
    """Try each supported Python that is here; resolve the wheels for all."""
    for version in PYTHONS:
        count = resolve_wheels(version)
        print(f"Python {version}: {count} packages of production have wheels")
        if find_python(version) is None:
            print(f"Python {version}: not on this machine, so the gateway was not tried with it")
            continue
        try_installed(version)
        print(f"Python {version}: installed with its lock, image by REST and by MCP")


if __name__ == "__main__":
    main()
