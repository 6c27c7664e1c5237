"""The pages of the documentation: their fenced blocks, links and headings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ALSO = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[\w.-]+)\")?$")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$")


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block: its page from the root, its line, its language, its file's name, its text."""

    page: str
    line: int
    language: str
    title: str | None
    text: str
    not_run: str | None
    """The reason that stands on the line before it."""

    @property
    def where(self) -> str:
        """The place in the words of an editor."""
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every page of docs/, and the pages at the root that have commands."""
    return [*(ROOT / name for name in ALSO), *sorted(DOCS.rglob("*.md"))]


def name_of(page: Path) -> str:
    """The path from the root."""
    return page.relative_to(ROOT).as_posix()


@cache
def blocks_of(page: Path) -> tuple[CodeBlock, ...]:
    """The fenced blocks of a page, in their order."""
    return tuple(_blocks(page))


def all_blocks() -> list[CodeBlock]:
    """The fenced blocks of all pages."""
    return [block for page in pages() for block in blocks_of(page)]


def _blocks(page: Path) -> Iterator[CodeBlock]:
    opened: re.Match[str] | None = None
    before, begun = "", 0
    lines: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if opened is None:
            opened, begun, lines = FENCE.match(line), number, []
            before = before if opened else line.strip()
        elif line.strip() == "```":
            reason = NOT_RUN.fullmatch(before)
            yield CodeBlock(
                name_of(page),
                begun,
                opened["language"],
                opened["title"],
                "\n".join(lines) + "\n",
                reason and reason[1],
            )
            opened, before = None, ""
        else:
            lines.append(line.removeprefix(opened["indent"]))
    assert opened is None, f"{name_of(page)}:{begun}: the block does not end"


def prose_of(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^( *)```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def links_of(page: Path) -> list[str]:
    """The targets of the links of a page."""
    return LINK.findall(re.sub(r"`[^`]*`", "", prose_of(page)))


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """The anchors that a code host gives to the headings of a page."""
    found = [HEADING.match(line) for line in prose_of(page).splitlines()]
    return frozenset(_anchor(heading[1]) for heading in found if heading)


def _anchor(heading: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
