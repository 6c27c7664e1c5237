"""The mutated code, the tests that must notice, and the mutants known to be equivalent."""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_FUNCTION = re.compile(r"^CREATE OR REPLACE FUNCTION (\w+)\(", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Target:
    """Modules and SQL functions that the same tests look after.

    `tests`: the nearest files, in this order; `wider`: folders with all that may notice.
    """

    name: str
    tests: tuple[str, ...]
    wider: tuple[str, ...]
    modules: tuple[Path, ...] = ()
    functions: tuple[str, ...] = ()


def read_targets() -> list[Target]:
    """The targets of targets.toml, in its order."""
    content = tomllib.loads((HERE / "targets.toml").read_text())
    named = {name for entry in content["targets"] for name in entry.get("functions", ())}
    return [
        Target(
            entry["name"],
            tests=tuple(entry["tests"]),
            wider=tuple(entry.get("wider", content["wider"])),
            modules=_files(entry.get("sources", ())),
            functions=(
                *entry.get("functions", ()),
                *(
                    name
                    for path in _files(entry.get("scripts", ()))
                    for name in functions_of(path)
                    if name not in named
                ),
            ),
        )
        for entry in content["targets"]
    ]


def _files(patterns: Iterable[str]) -> tuple[Path, ...]:
    """The files that match the patterns.

    Raises:
        ValueError: none matches one of them.
    """
    found: list[Path] = []
    for pattern in patterns:
        paths = sorted(ROOT.glob(pattern))
        if not paths:
            raise ValueError(f"no file is {pattern}")
        found += paths
    return tuple(found)


def functions_of(script: Path) -> list[str]:
    """The names of the SQL functions that a script defines."""
    return _FUNCTION.findall(script.read_text())


def left_out() -> dict[str, str]:
    """Modules of money that are no targets: the reason of each."""
    content = tomllib.loads((HERE / "targets.toml").read_text())
    return {name: entry["reason"] for entry in content["left_out"] for name in entry["names"]}


def known_survivors() -> dict[str, str]:
    """Mutants that change nothing that matters, by identity: the reason of each."""
    content = tomllib.loads((HERE / "survivors.toml").read_text())
    return {
        identity: entry["reason"] for entry in content["survivors"] for identity in entry["mutants"]
    }
