"""The mutated code, the tests that must notice, and the mutants known to be equivalent."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Target:
    """Sources (glob patterns) and SQL functions that the same tests look after.

    `tests`: the nearest files, in this order; `wider`: folders with all that may notice.
    """

    name: str
    tests: tuple[str, ...]
    wider: tuple[str, ...]
    sources: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()


def read_targets() -> list[Target]:
    """The targets of targets.toml, in its order."""
    content = tomllib.loads((HERE / "targets.toml").read_text())
    return [
        Target(
            entry["name"],
            tests=tuple(entry["tests"]),
            wider=tuple(entry.get("wider", content["wider"])),
            sources=tuple(entry.get("sources", ())),
            functions=tuple(entry.get("functions", ())),
        )
        for entry in content["targets"]
    ]


def known_survivors() -> dict[str, str]:
    """Mutants that change nothing that matters, by identity: the reason of each."""
    content = tomllib.loads((HERE / "survivors.toml").read_text())
    return {
        identity: entry["reason"] for entry in content["survivors"] for identity in entry["mutants"]
    }
