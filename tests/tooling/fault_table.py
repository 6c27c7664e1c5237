"""docs/faults.md, written from a run of every fault: `python -m tests.tooling.fault_table`."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.providers.fault_matrix import Observed
from tests.providers.faults import ANSWER, CONNECTION, FAULTS, STATUS
from tests.providers.ways import GENERATION, STREAM, WAYS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
TEST = "tests/providers/test_fault_matrix.py"
TABLES = "tables"
"""The property of the test's report that has them."""
QUIETLY = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
BEGIN = "<!-- `make faults` writes these tables from a run. -->\n"
END = "<!-- The written tables end here. -->\n"
HEAD = "| fault | provider | calls | outcome | ledger | client |\n|---|---|---|---|---|---|\n"
WAYS_HEAD = "| fault | provider | edit | stream | MCP |\n|---|---|---|---|---|\n"
HELD = "the reserved amount"


def rendered(observed: Iterable[Observed]) -> str:
    """The tables: one a section, one row for the faults and providers of which all is the same."""
    rows = list(observed)
    everywhere = {one.vendor.title for one in rows}
    generations = [one for one in rows if one.way == GENERATION]
    sections = [
        f"## {section}\n\n{HEAD}{''.join(_rows(generations, section, everywhere))}"
        for section in (CONNECTION, ANSWER, STATUS)
    ]
    sections.append(
        f"## Edits, streams and MCP\n\n{WAYS_HEAD}{''.join(_compared(rows, everywhere))}"
    )
    return f"{BEGIN}\n{chr(10).join(sections)}\n{END}"


def tables_of(page: str) -> str:
    """The part of the page's text that is written from a run."""
    _, begin, rest = page.partition(BEGIN)
    written, end, _ = rest.partition(END)
    return begin + written + end


def _rows(rows: Iterable[Observed], section: str, everywhere: set[str]) -> Iterator[str]:
    vendors: dict[tuple[str, str], list[str]] = {}
    for one in sorted(rows, key=lambda row: FAULTS.index(row.fault)):
        if one.fault.section == section:
            vendors.setdefault((one.fault.name, _cells(one)), []).append(one.vendor.title)
    return _merged(vendors, everywhere)


def _compared(rows: Iterable[Observed], everywhere: set[str]) -> Iterator[str]:
    """The rows of the faults that every way of asking meets, compared with a generation."""
    found: dict[tuple[str, str], dict[str, Observed]] = {}
    for one in sorted(rows, key=lambda row: FAULTS.index(row.fault)):
        found.setdefault((one.fault.name, one.vendor.title), {})[one.way] = one
    vendors: dict[tuple[str, str], list[str]] = {}
    for (fault, title), by in found.items():
        if set(by) != {GENERATION}:
            told = " | ".join(_cell(by.get(way), by.get(GENERATION)) for way in WAYS[1:])
            vendors.setdefault((fault, told), []).append(title)
    return _merged(vendors, everywhere)


def _cell(one: Observed | None, generation: Observed | None) -> str:
    if one is None:
        return ""
    event = " in an event" if one.way == STREAM and one.answer.status == 200 else ""
    if generation is not None and facts_of(one) == facts_of(generation):
        return f"the same{event if one.answer.code else ''}"
    return f"{one.entry.outcome}, {_ledger(one)}, `{one.answer.code}`{event}"


def facts_of(one: Observed) -> tuple[int, str, list[str], str]:
    """The calls, the outcome, the kinds of ledger lines and the code for the client."""
    return (
        one.arrived.calls,
        one.entry.outcome,
        [kind for kind, _ in one.final.lines],
        one.answer.code,
    )


def _merged(vendors: Mapping[tuple[str, str], list[str]], everywhere: set[str]) -> Iterator[str]:
    """One row for the faults of which vendors and cells are the same."""
    faults: dict[tuple[str, str], list[str]] = {}
    for (fault, told), titles in vendors.items():
        where = "all" if set(titles) == everywhere else ", ".join(titles)
        faults.setdefault((where, told), []).append(fault)
    for (where, told), names in faults.items():
        yield f"| {_joined(names)} | {where} | {told} |\n"


def _joined(names: list[str]) -> str:
    """Names of a word in one line, each of the others in its own."""
    short = [name for name in names if " " not in name]
    first = [", ".join(short)] if short else []
    return "<br>".join(first + [name for name in names if name not in short])


def _cells(one: Observed) -> str:
    """The cells of one fault at one provider: calls, outcome, ledger, client."""
    answer = one.answer
    told = f"{answer.status} `{answer.code}`" if answer.code else str(answer.status)
    retry = ", Retry-After" if answer.retry_after else ""
    return f"{one.arrived.calls} | {one.entry.outcome} | {_ledger(one)} | {told}{retry}"


def _ledger(one: Observed) -> str:
    [(kind, nano)] = one.final.lines
    if kind == "post":
        amount = "the bill" if nano == one.arrived.billed_nano else str(nano)
    elif nano == 0:
        amount = "nothing"
    else:
        amount = HELD if nano == one.entry.held_nano else str(nano)
    line = f"`{kind}`, {amount}"
    return line if one.entry.lines else f"open; after an hour {line}"


class _Reader:
    """A plugin of pytest that takes the tables out of the report of their test."""

    def __init__(self) -> None:
        self.tables = ""
        self.is_broken = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember the tables, and if a test of anything else has failed."""
        tables = dict(report.user_properties).get(TABLES)
        if tables is not None:
            self.tables = str(tables)
        elif report.failed:
            self.is_broken = True


def main() -> None:
    """Let every fault happen and write the page, unless one of them broke a rule of money."""
    reader = _Reader()
    pytest.main([TEST, "-q", "--no-header", "--tb=short", *QUIETLY], plugins=[reader])
    if reader.is_broken or not reader.tables:
        sys.exit(f"{PAGE.name} is not written: a fault broke a rule.")
    page = PAGE.read_text()
    written = page.replace(tables_of(page), reader.tables)
    PAGE.write_text(written)
    sys.stdout.write(f"{PAGE.name}: {'unchanged' if written == page else 'written'}\n")


if __name__ == "__main__":
    main()
