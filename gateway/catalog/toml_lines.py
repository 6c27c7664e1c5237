"""Lines of keys in a TOML text, which Python's parser does not tell."""

import re
from collections.abc import Iterator, Sequence

Place = tuple[str | int, ...]
_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_LONG_TEXT = re.compile(r'"""|' + "'''")


def line_of(text: str, place: Sequence[str | int]) -> int | None:
    """Return the line of a key such as `("models", 2, "price")`, or of the nearest one around it.

    None if no line names even its first part.
    """
    wanted, found, depth = tuple(place), None, 0
    for number, path in _paths(text):
        # Of equally near ones the first: a table's header comes before its keys.
        shared = min(len(path), len(wanted))
        if depth < shared and path[:shared] == wanted[:shared]:
            found, depth = number, shared
    return found


def _paths(text: str) -> Iterator[tuple[int, Place]]:
    table: Place = ()
    counts: dict[str, int] = {}
    in_text = False
    for number, line in enumerate(text.splitlines(), 1):
        is_outside = not in_text
        in_text ^= len(_LONG_TEXT.findall(line)) % 2 == 1
        if not is_outside:
            continue
        if header := _HEADER.match(line):
            names = _names(header[2])
            if header[1] == "[[":
                name = names[0]
                counts[name] = counts.get(name, -1) + 1
            table = _numbered(names, counts)
            yield number, table
        elif key := _KEY.match(line):
            yield number, (*table, *_names(key[1]))


def _numbered(names: Sequence[str], counts: dict[str, int]) -> Place:
    first, *rest = names
    return (first, counts[first], *rest) if first in counts else (first, *rest)


def _names(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]
