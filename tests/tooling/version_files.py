"""The version in the files that are read without the package: the Dockerfile and the Helm chart."""

import re
from collections.abc import Mapping
from pathlib import Path

from gateway import __version__

ROOT = Path(__file__).resolve().parents[2]
LINES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "Dockerfile": ((r"^ARG VERSION=.*$", f"ARG VERSION={__version__}"),),
    "deploy/helm/image-gateway/Chart.yaml": (
        (r"^version: .*$", f"version: {__version__}"),
        (r"^appVersion: .*$", f'appVersion: "{__version__}"'),
    ),
}
"""For each file the lines that hold the version: how to find them, and what they should be."""


def rendered() -> dict[Path, str]:
    """The text that each of these files should have."""
    return {ROOT / name: _with_version(name) for name in LINES}


def _with_version(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    for pattern, line in LINES[name]:
        text, found = re.subn(pattern, line, text, flags=re.MULTILINE)
        if found != 1:
            raise ValueError(f"{name} has {found} lines like {pattern}; exactly one is expected.")
    return text
