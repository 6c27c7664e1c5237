"""The commands that the rehearsal takes from the documentation."""

import re
from pathlib import Path

REHEARSED = {
    "docs/deploy.md": "Step by step",
    "docs/backup.md": "With a Postgres of your own",
}
"""The sections whose commands `make rehearsal` runs, by page."""


def commands_of(page: Path, section: str) -> list[list[str]]:
    """The lines of each block of commands in a section of a page."""
    text = page.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2]
    blocks = re.findall(r"^```sh\n(.*?)^```", text.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    assert blocks, (page, section)
    return [[line for line in block.splitlines() if line] for block in blocks]
