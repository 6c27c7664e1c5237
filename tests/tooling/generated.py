"""Files and parts of pages written from the code: settings, routes, errors, commands, metrics, ….

`python -m tests.tooling.generated` writes them; with `--check` it only says which are stale.
"""

import sys
from pathlib import Path

from tests.tooling import (
    boards,
    command_pages,
    decision_pages,
    error_pages,
    metric_pages,
    model_pages,
    parameter_pages,
    provider_pages,
    route_pages,
    settings_pages,
    version_files,
    webhook_pages,
)

ROOT = Path(__file__).resolve().parents[2]


def rendered() -> dict[Path, str]:
    """The text that each file should have."""
    return (
        settings_pages.rendered()
        | parameter_pages.rendered()
        | route_pages.rendered()
        | provider_pages.rendered()
        | metric_pages.rendered()
        | command_pages.rendered()
        | error_pages.rendered()
        | model_pages.rendered()
        | decision_pages.rendered()
        | webhook_pages.rendered()
        | boards.rendered()
        | version_files.rendered()
    )


def main() -> None:
    """Write the stale files, or only name them with `--check`."""
    pages = rendered()
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if sys.argv[1:] == ["--check"]:
        names = " and ".join(path.relative_to(ROOT).as_posix() for path in stale)
        sys.exit(f"{names}: stale. Run: make generated" if stale else 0)
    for path in stale:
        path.write_text(pages[path])


if __name__ == "__main__":
    main()
