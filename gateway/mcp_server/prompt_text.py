"""The notation of prompt texts: `{name}`, `[[part]]`, `[[name=choice: part]]`, `[[no name: part]]`.

Values are put in once, as they are: nothing in them is read as notation, and nothing is looked up
or run.
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
    """A prompt text that cannot be read; `mark` is what stands at `offset`."""

    def __init__(self, message: str, *, offset: int, mark: str) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        self.mark = mark


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Where the value of an argument goes."""

    name: str
    offset: int

    @property
    def mark(self) -> str:
        """As it stands in the text."""
        return f"{{{self.name}}}"


@dataclass(frozen=True, slots=True)
class Condition:
    """An optional part is there only for this choice of this argument; None means without it."""

    name: str
    choice: str | None


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of text that is there as a whole or not at all.

    An optional part needs a value for each of its placeholders, and its condition to hold.
    """

    pieces: tuple[str | Placeholder, ...]
    offset: int
    is_optional: bool = False
    condition: Condition | None = None

    @property
    def placeholders(self) -> Iterator[Placeholder]:
        """The placeholders in it, in their order."""
        return (piece for piece in self.pieces if isinstance(piece, Placeholder))

    @property
    def says_something(self) -> bool:
        """Whether there is more in it than space."""
        return any(isinstance(piece, Placeholder) or piece.strip() for piece in self.pieces)


def parse_text(text: str) -> tuple[Part, ...]:
    """Take a prompt text apart.

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
    """Put the values in.

    Line breaks of the text are spaces, an empty line starts a paragraph, and what vanished leaves
    neither spaces nor empty paragraphs. `values` has the words for each argument that is there,
    `choices` what was chosen.
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
    """Text as it grows. The space between two pieces is written when the second one comes."""

    def __init__(self) -> None:
        self.text = ""
        self._space = ""
        self._ends_with_value = False

    def add_value(self, value: str) -> None:
        """Put in what somebody said, as it is."""
        self._write(value)
        self._ends_with_value = True

    def add_text(self, text: str) -> None:
        """Put in what the template says, with its spaces in order."""
        for spaces, words in _WORDS.findall(text):
            if spaces:
                self._leave(spaces)
            elif self._space == " " and _CLINGING.match(words):
                self._space = ""  # what stood between the space and the comma has vanished
            if words:
                self._add_words(words)

    def _add_words(self, words: str) -> None:
        if self._ends_with_value and not self._space and self.text.endswith(_ENDS):
            # "Subject: {subject}." reads well with a whole sentence for a subject too.
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
    """The condition that an optional part begins with, and where it ends."""
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
            f"'{mark[0][:40]}' is no placeholder; write {{name}} with the name of an argument, "
            f"or double the brace where it belongs to the text",
        )
    return Placeholder(placeholder[1], mark.start())


def _is_there(part: Part, values: Mapping[str, str], choices: Mapping[str, str]) -> bool:
    condition = part.condition
    if condition is not None and choices.get(condition.name) != condition.choice:
        return False
    return all(placeholder.name in values for placeholder in part.placeholders)


def _mistake(mark: re.Match[str], message: str) -> TextMistake:
    return TextMistake(message, offset=mark.start(), mark=mark[0])
