"""Mutants of the SQL functions of the money path, as the migrations leave them in the database."""

import re
from collections.abc import Iterator

from tests.mutation.mutants import Mutant, make_mutant

_NOISE = re.compile(r"--[^\n]*|'(?:[^']|'')*'|\$\w*\$")
"""Comments, literals and the marks around a body: nothing in them is changed."""
UNTESTED_LINES = ("RAISE", "SET search_path", "FOR UPDATE SKIP")
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.ASCII), after)
    for pattern, after in (
        (r"(?<![<>=:!])<(?![<>=])", "<="),
        (r"(?<![<>=:!-])>(?![<>=])", ">="),
        (r"<=", "<"),
        (r">=", ">"),
        (r"<>", "="),
        (r"(?<![<>=:!])=(?![>=])", "<>"),
        (r"(?<= )\+(?= )", "-"),
        (r"(?<= )-(?= )", "+"),
        (r"\bAND\b", "OR"),
        (r"\bOR\b(?! REPLACE)", "AND"),
        (r"\bIS NULL\b", "IS NOT NULL"),
        (r"\bIS NOT NULL\b", "IS NULL"),
        (r"\bIS NOT DISTINCT FROM\b", "="),
        (r"\bgreatest\b", "least"),
        (r"\bleast\b", "greatest"),
        (r"\bFOR UPDATE\b(?! OF)", ""),
        (r"\bNOT (?=IN\b|EXISTS\b)", ""),
        (r"(?<![\w.:])0(?![\w.:])", "1"),
        # Of these three, the rows count and not the value: EXISTS, locks, a count of changed rows.
        (r"(?<![\w.:])(?<!SELECT )(?<!PERFORM )(?<!RETURNING )1(?![\w.:])", "2"),
    )
)


def sql_mutants(name: str, definition: str) -> list[Mutant]:
    """Every mutant of one function, given as `pg_get_functiondef` writes it."""
    body_start = definition.index("$")
    quiet = _NOISE.sub(lambda match: "\0" * len(match[0]), definition)
    content = definition.encode()
    return sorted(
        _found(name, definition, content, quiet, body_start),
        key=lambda mutant: (mutant.start, mutant.end, mutant.after),
    )


def _found(
    name: str, definition: str, content: bytes, quiet: str, body_start: int
) -> Iterator[Mutant]:
    for pattern, after in _PATTERNS:
        for match in pattern.finditer(quiet, body_start):
            line_start = definition.rfind("\n", 0, match.start()) + 1
            if definition[line_start:].lstrip().startswith(UNTESTED_LINES):
                continue
            start = len(definition[: match.start()].encode())
            edit = (start, start + len(match[0]), after.encode())
            yield make_mutant("sql", name, name, content, edit)
