"""Rows of results, printed as a table and saved as JSON."""

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One row of the table; `limit` is the value that is not accepted."""

    what: str
    floor: float | None
    gateway: float
    value: float
    unit: str
    goal: str
    limit: str


def print_rows(rows: Sequence[Row]) -> None:
    """Print the table, with the floor of the same run."""
    print(f"{'what':46} {'floor':>9} {'gateway':>9} {'result':>10}  {'goal':>8}  not accepted")
    for row in rows:
        floor = "" if row.floor is None else f"{row.floor:.2f}"
        result = f"{row.value:.2f} {row.unit}"
        print(
            f"{row.what:46} {floor:>9} {row.gateway:9.2f} {result:>10}  {row.goal:>8}  {row.limit}"
        )


def save(name: str, **content: object) -> None:
    """Save JSON in benchmarks/results, with the measured version and machine."""
    RESULTS.mkdir(exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    measured = {"commit": commit, "python": platform.python_version(), **content}
    (RESULTS / f"{name}.json").write_text(json.dumps(measured, indent=2, default=vars) + "\n")
