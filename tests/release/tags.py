"""The tag of a release against the version and the changelog."""

import re

from gateway import __version__

HEADING = re.compile(r"^## (\d+\.\d+\.\d+)(?: \((not released|\d{4}-\d\d-\d\d)\))?$")
"""The heading of a version, with the day of its release. The first version has none."""


def headings(changelog: str) -> list[tuple[str, str]]:
    """Return the versions of a changelog, newest first, with when they were released."""
    lines = [line for line in changelog.splitlines() if line.startswith("## ")]
    found = [(line, HEADING.match(line)) for line in lines]
    if wrong := [line for line, match in found if match is None]:
        raise ValueError(f"Not the heading of a version, such as `## 1.2.3 (2026-12-24)`: {wrong}")
    return [(match[1], match[2] or "") for _line, match in found if match is not None]


def tag_problem(tag: str, changelog: str, version: str = __version__) -> str | None:
    """Return why `tag` may not be released; None if it may."""
    if tag != f"v{version}":
        return f"The tag is {tag or 'missing'}; that of this version is v{version}."
    newest, when = headings(changelog)[0]
    if newest != version or not re.match(r"\d{4}-", when):
        return (
            f"CHANGELOG.md begins with {newest} ({when}): give the heading of {version} the day of"
            " its release."
        )
    return None
