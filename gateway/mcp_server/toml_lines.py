"""Line numbers of values in a TOML file, which tomllib does not report."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

KeyPath = tuple[str | int, ...]
"""Keys and indexes from the root of the file: `("arguments", 0, "name")`."""

_LINE_IN_MESSAGE = re.compile(r" \(at line (\d+), column \d+\)$")
_LAST_LINE_IN_MESSAGE = " (at end of document)"
_LONG_STRING = re.compile(r"""[^#"'\[]*=\s*(\"\"\"|''')""")
_ENDS_OF_LONG_VALUES = ('"""', "'''", "]")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a TOML file: the number of its first line, and its text."""

    line: int
    text: str

    def line_of(self, value: str, offset: int, mark: str) -> int:
        """The line of the `mark` at `offset` in the string `value` that this statement sets.

        The marks are counted, since a string and its source can differ in length. A mark spelled
        with escapes is not found; then the result is the statement's first line.
        """
        occurrence = sum(position < offset for position in _positions(value, mark))
        position = next(islice(_positions(self.text, mark), occurrence, None), 0)
        return self.line + self.text.count("\n", 0, position)


def locate(source: str) -> Mapping[KeyPath, Statement]:
    """Map each path to the statement that sets its value; `source` is valid TOML.

    The path of a table or of an element leads to its header.
    """
    found: dict[KeyPath, Statement] = {}
    last_index: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for statement in _statements(source):
        data = tomllib.loads(statement.text)
        if statement.text.lstrip().startswith("["):
            table = _header_path(data, last_index)
            for length in range(1, len(table) + 1):
                found.setdefault(table[:length], statement)
        else:
            for path in _paths(data, table):
                found.setdefault(path, statement)
    return found


def explain_syntax(error: tomllib.TOMLDecodeError, source: str) -> tuple[int, str]:
    """The line and message of an error of tomllib."""
    message = str(error)
    at = _LINE_IN_MESSAGE.search(message)
    if at is None:
        return source.rstrip("\n").count("\n") + 1, message.removesuffix(_LAST_LINE_IN_MESSAGE)
    return int(at[1]), message[: at.start()]


def _positions(text: str, mark: str) -> Iterator[int]:
    position = text.find(mark)
    while position >= 0:
        yield position
        position = text.find(mark, position + 1)


def _statements(source: str) -> Iterator[Statement]:
    """Iterate over the statements; each ends with the first line up to which it can be parsed."""
    lines = source.split("\n")
    start = 0
    ends: tuple[str, ...] = _ENDS_OF_LONG_VALUES
    for end, line in enumerate(lines, start=1):
        if end == start + 1:
            long_string = _LONG_STRING.match(line)
            ends = (long_string[1],) if long_string else _ENDS_OF_LONG_VALUES
        elif not any(mark in line for mark in ends):
            continue
        statement = Statement(start + 1, "\n".join(lines[start:end]))
        if _is_complete(statement.text):
            yield statement
            start = end


def _is_complete(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _header_path(header: Mapping[str, Any], last_index: dict[KeyPath, int]) -> KeyPath:
    """The path that `[a.b]` or `[[a.b]]` opens; `last_index` counts the elements of arrays."""
    path: KeyPath = ()
    node: Any = header
    while node:
        ((key, node),) = node.items()
        path += (key,)
        if isinstance(node, list):
            last_index[path] = last_index.get(path, -1) + 1
            node = node[0]
        if path in last_index:
            path += (last_index[path],)
    return path


def _paths(value: object, path: KeyPath) -> Iterator[KeyPath]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _paths(inner, (*path, index))
