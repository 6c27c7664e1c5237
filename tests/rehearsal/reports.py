"""The report of a rehearsal, for the person or the log that has asked for it."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest


@dataclass
class Report:
    """Findings, in the order in which they were made."""

    findings: list[tuple[str, str]] = field(default_factory=list)

    def add(self, subject: str, finding: object) -> None:
        self.findings.append((subject, str(finding)))

    def text(self) -> str:
        """The findings as lines, the subjects aligned."""
        width = max((len(subject) for subject, _ in self.findings), default=0)
        return "".join(f"  {subject:{width}}  {found}\n" for subject, found in self.findings)


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """The report of this run; it is printed at the end."""
    made = Report()
    yield made
    sys.stdout.write(f"\n\nRehearsal:\n{made.text()}")
