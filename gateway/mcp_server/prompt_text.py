"""The notation of prompt texts: `{name}`, `[[part]]`, `[[name=choice: part]]`, `[[no name: part]]`.

Values are inserted once, verbatim: notation in them has no effect, and nothing is looked up or
executed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MAX_PLACEHOLDERS = 100

_MARK = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{[^{}]*\}|[{}]")
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_CHOICE = re.compile(r"\s*([a-z][a-z0-9_]*)\s*=(?:\s*([A-Za-z0-9_-]+)\s*:)?")
_ABSENCE = re.compile(r"\s*no\s+([a-z][a-z0-9_]*)\s*:")
_WORDS = re.compile(r"(\s*)(\S*)")
_PARAGRAPH = "\n\n"
_CLINGING = re.compile(r"[,.;:!?)]+(?!\w)")
_FULL_STOP = re.compile(r"^\.(?![.\w])")
_ENDS = (".", "!", "?", "…")


class TextMistake(Exception):
    """An error in a prompt text; `mark` is the text at `offset`."""

    def __init__(self, message: str, *, offset: int, mark: str) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        self.mark = mark


@dataclass(frozen=True, slots=True)
class Placeholder:
    """The position of an argument's value."""

    name: str
    offset: int

    @property
    def mark(self) -> str:
        """The placeholder as written in the text."""
        return f"{{{self.name}}}"


@dataclass(frozen=True, slots=True)
class Condition:
    """The choice of an argument for which an optional part appears; None: the argument has no
    value.
    """

    name: str
    choice: str | None


@dataclass(frozen=True, slots=True)
class Part:
    """A section of the text that appears as a whole or not at all.

    An optional part requires a value for each of its placeholders, and its condition to hold.
    """

    pieces: tuple[str | Placeholder, ...]
    offset: int
    is_optional: bool = False
    condition: Condition | None = None

    @property
    def placeholders(self) -> Iterator[Placeholder]:
        """Iterate over its placeholders, in order."""
        return (piece for piece in self.pieces if isinstance(piece, Placeholder))

    @property
    def says_something(self) -> bool:
        """Return True if it contains more than whitespace."""
        return any(isinstance(piece, Placeholder) or piece.strip() for piece in self.pieces)


def parse_text(text: str) -> tuple[Part, ...]:
    """Parse a prompt text.

    Raises:
        TextMistake: a mark is unknown, unpaired or nested, or there are too many.
    """
    parts: list[Part] = []
    pieces: list[str | Placeholder] = []
    opened: re.Match[str] | None = None
    part_start = position = placeholders = 0
    for mark in _MARK.finditer(text):
        pieces.append(text[position : mark.start()])
        position = mark.end()
        if mark[0] == "[[":
            if opened is not None:
                raise _mistake(mark, "optional parts cannot be nested; close the first one before")
            parts.append(Part(tuple(pieces), part_start))
            pieces, opened, part_start = [], mark, mark.start()
        elif mark[0] == "]]":
            if opened is None:
                raise _mistake(mark, "']]' closes no optional part; remove it, or open one by '[['")
            parts.append(_optional_part(pieces, opened))
            pieces, opened, part_start = [], None, mark.end()
        elif mark[0] in {"{{", "}}"}:
            pieces.append(mark[0][0])
        else:
            pieces.append(_placeholder(mark))
            placeholders += 1
            if placeholders > MAX_PLACEHOLDERS:
                raise _mistake(mark, f"more than {MAX_PLACEHOLDERS} placeholders; use fewer")
    if opened is not None:
        raise _mistake(opened, "'[[' opens an optional part that no ']]' closes; close it")
    return (*parts, Part((*pieces, text[position:]), part_start))


def render_text(
    parts: tuple[Part, ...], *, values: Mapping[str, str], choices: Mapping[str, str]
) -> str:
    """Insert the values.

    Line breaks of the text become spaces, an empty line starts a paragraph, and omitted parts leave
    neither spaces nor empty paragraphs. `values` has the wording of each argument that has a value,
    `choices` the chosen values.
    """
    prose = _Prose()
    for part in parts:
        if not part.is_optional or _is_there(part, values, choices):
            for piece in part.pieces:
                if isinstance(piece, Placeholder):
                    prose.add_value(values[piece.name])
                else:
                    prose.add_text(piece)
    return prose.text


class _Prose:
    """The text as it grows. The space between two pieces is written with the second one."""

    def __init__(self) -> None:
        self.text = ""
        self._space = ""
        self._ends_with_value = False

    def add_value(self, value: str) -> None:
        """Append an argument's value, verbatim."""
        self._write(value)
        self._ends_with_value = True

    def add_text(self, text: str) -> None:
        """Append template text, with normalized spaces."""
        for spaces, words in _WORDS.findall(text):
            if spaces:
                self._leave(spaces)
            elif self._space == " " and _CLINGING.match(words):
                self._space = ""  # the part between the space and the comma was omitted
            if words:
                self._add_words(words)

    def _add_words(self, words: str) -> None:
        if self._ends_with_value and not self._space and self.text.endswith(_ENDS):
            # "Subject: {subject}." then reads well even if the subject is a whole sentence.
            words = _FULL_STOP.sub("", words)
        if words:
            self._write(words)
            self._ends_with_value = False

    def _leave(self, spaces: str) -> None:
        is_paragraph = spaces.count("\n") > 1 or self._space == _PARAGRAPH
        self._space = _PARAGRAPH if is_paragraph else " "

    def _write(self, text: str) -> None:
        self.text += self._space + text if self.text else text
        self._space = ""


def _optional_part(pieces: list[str | Placeholder], opened: re.Match[str]) -> Part:
    first = pieces[0]
    condition, end = None, 0
    if isinstance(first, str):
        condition, end = _condition(first, opened)
        pieces = [first[end:], *pieces[1:]]
    return Part(tuple(pieces), opened.start(), is_optional=True, condition=condition)


def _condition(text: str, opened: re.Match[str]) -> tuple[Condition | None, int]:
    """Parse the condition at the start of an optional part; returns it and its end."""
    choice = _CHOICE.match(text)
    if choice is not None and choice[2] is None:
        raise _mistake(
            opened, f"'[[{choice[1]}=' begins a condition; write [[{choice[1]}=CHOICE: text]]"
        )
    if choice is not None:
        return Condition(choice[1], choice[2]), choice.end()
    absence = _ABSENCE.match(text)
    if absence is not None:
        return Condition(absence[1], None), absence.end()
    return None, 0


def _placeholder(mark: re.Match[str]) -> Placeholder:
    placeholder = _PLACEHOLDER.fullmatch(mark[0])
    if placeholder is None:
        raise _mistake(
            mark,
            f"'{mark[0][:40]}' is not a placeholder; write {{name}} with the name of an argument, "
            f"or double the brace if it belongs to the text",
        )
    return Placeholder(placeholder[1], mark.start())


def _is_there(part: Part, values: Mapping[str, str], choices: Mapping[str, str]) -> bool:
    condition = part.condition
    if condition is not None and choices.get(condition.name) != condition.choice:
        return False
    return all(placeholder.name in values for placeholder in part.placeholders)


def _mistake(mark: re.Match[str], message: str) -> TextMistake:
    return TextMistake(message, offset=mark.start(), mark=mark[0])
