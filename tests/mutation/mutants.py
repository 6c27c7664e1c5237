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
    change: str
    """The changed lines on one, with `«before -> after»` in the place of the change."""

    @property
    def identity(self) -> str:
        """A name that stays the same when lines move, for the list of known survivors."""
        return f"{self.source} {self.within}: {self.change}"

    def apply(self, content: bytes) -> bytes:
        """The source with the change; lines below it keep their numbers.

        Raises:
            ValueError: the source is not the one that the mutant was made from.
        """
        if content[self.start : self.end].decode() != self.before:
            raise ValueError(f"{self.source} has changed since the mutant was made")
        lost_lines = "\n" * (self.before.count("\n") - self.after.count("\n"))
        return content[: self.start] + (self.after + lost_lines).encode() + content[self.end :]


def make_mutant(
    language: Language, source: str, within: str, content: bytes, edit: tuple[int, int, bytes]
) -> Mutant:
    """The mutant that makes one edit (`start`, `end`, `after`) of `content`."""
    start, end, new = edit
    before, after = content[start:end].decode(), new.decode()
    head = content[content.rfind(b"\n", 0, start) + 1 : start].decode()
    tail = content[end:].split(b"\n", 1)[0].decode()
    change = " ".join(f"{head}«{before} -> {after}»{tail}".split())
    line = content.count(b"\n", 0, start) + 1
    return Mutant(language, source, within, line, start, end, before, after, change)
