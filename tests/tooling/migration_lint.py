"""Lint the SQL of migrations: `python -m tests.tooling.migration_lint`, part of `make check`.

Refuses what locks a table for long or breaks the release before (`squawk` has the rules and their
reasons). A statement that is meant so says `-- squawk-ignore <rule>` above it, and why.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

VERSIONS = Path(__file__).resolve().parents[2] / "migrations" / "versions"
LAST_EXEMPT = "2026_11_30_99"
"""Revisions up to this one were made before any database had data to wait for."""
LEFT_OUT = (
    "prefer-bigint-over-int",
    "prefer-bigint-over-smallint",
    "prefer-robust-stmts",  # a revision runs once, in a transaction of its own
    "prefer-text-field",
    "require-lock-timeout",  # every revision begins with one
    "require-statement-timeout",  # the migration's connection has one
)
"""Rules about style."""


def scripts_of(revision: str) -> Iterator[tuple[str, str]]:
    """Yield the name and text of each SQL script of a revision: its upper-case strings."""
    for node in ast.parse(revision).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            [target] = node.targets
            if isinstance(target, ast.Name) and target.id.isupper():
                yield target.id, str(node.value.value)


def refusals(script: str) -> str:
    """Return what squawk says against a script; empty if nothing."""
    options = [f"--exclude={rule}" for rule in LEFT_OUT]
    if "CONCURRENTLY" not in script:  # which is run outside
        options.append("--assume-in-transaction")
    done = subprocess.run(
        [Path(sys.executable).with_name("squawk"), "--pg-version=15", "--reporter=gcc", *options],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr if done.returncode else ""


def main() -> int:
    """Lint the revisions; return the exit status."""
    status = 0
    for path in sorted(VERSIONS.glob("*.py")):
        if path.name > LAST_EXEMPT:
            for name, script in scripts_of(path.read_text(encoding="utf-8")):
                if found := refusals(script):
                    sys.stderr.write(f"{path.name}, {name}:\n{found}\n")
                    status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
