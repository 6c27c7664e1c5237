"""A pytest plugin: names the test that found a mutant."""

import os
from pathlib import Path

import pytest

FILE = "MUTATION_FINDER"
"""The variable with the path of the file to write to."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write the failing test's id; with `-x` it is the only one."""
    if report.failed:
        Path(os.environ[FILE]).write_text(report.nodeid)
