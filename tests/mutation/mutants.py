"""A mutant: one small change in a source file, or in one SQL function of the database."""

from dataclasses import dataclass
from typing import Literal

Language = Literal["python", "sql"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """Replace the bytes `start` to `end` of a source by `after`.

    `source` is a path from the top of the checkout, or the name of an SQL function. `within` is
    the function's qualified name, `line` counts from 1 within the source.
    """

    language: Language
    source: str
    within: str
    line: int
    start: int
    end: int
    before: str
    after: str
    text: str
    """The whole line, as it is without the change."""

    @property
    def identity(self) -> str:
        """A name that stays the same when lines move, for the list of known survivors."""
        return f"{self.source} {self.within}: {self.text} [{self.before} -> {self.after}]"

    def apply(self, content: bytes) -> bytes:
        """The source with the change.

        Raises:
            ValueError: the source is not the one that the mutant was made from.
        """
        if content[self.start : self.end].decode() != self.before:
            raise ValueError(f"{self.source} has changed since the mutant was made")
        return content[: self.start] + self.after.encode() + content[self.end :]


def line_of(content: bytes, start: int) -> tuple[int, str]:
    """The line number of an offset, and the line's text without its indentation."""
    number = content.count(b"\n", 0, start) + 1
    return number, content.splitlines()[number - 1].decode().strip()
