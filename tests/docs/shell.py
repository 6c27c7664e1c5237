"""The commands in the shell blocks of the documentation."""

import re
import shlex
from collections.abc import Iterator

from tests.docs.pages import ROOT, CodeBlock
from tests.rehearsal.pages import REHEARSED, commands_of

ASSIGNED = re.compile(r"[A-Z_]+=.*")


def is_rehearsed(block: CodeBlock) -> bool:
    """Tell if `make rehearsal` runs the block."""
    section = REHEARSED.get(block.page)
    lines = [line for line in block.text.splitlines() if line]
    return section is not None and lines in commands_of(ROOT / block.page, section)


def simple_commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block, without what is assigned, piped into them and redirected."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        redirected = False
        for word in [*lexer, ";"]:
            if re.fullmatch(r"[|&;]+", word):
                while words and ASSIGNED.fullmatch(words[0]):
                    words = words[1:]
                if words:
                    yield words
                words = []
            elif redirected or re.fullmatch(r"[<>]+", word):
                redirected = not redirected
            else:
                words.append(word)
