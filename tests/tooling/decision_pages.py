"""The list of `docs/decisions/README.md`: every decision record with its title."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "decisions"
PAGE = FOLDER / "README.md"
MARKER = "<!-- `make generated` writes everything below from the records. -->\n"


def rendered() -> dict[Path, str]:
    """The text that the page should have."""
    by_hand, _, _ = PAGE.read_text().partition(MARKER)
    return {PAGE: f"{by_hand}{MARKER}\n{table()}"}


def table() -> str:
    """One line for each record, by number."""
    return "| number | decision |\n|---|---|\n" + "".join(
        f"| {path.name[:4]} | [{title_of(path)}]({path.name}) |\n"
        for path in sorted(FOLDER.glob("[0-9]*.md"))
    )


def title_of(path: Path) -> str:
    """The title without its number."""
    return path.read_text().partition("\n")[0].partition(": ")[2]
