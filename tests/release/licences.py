"""The licence of each package and vendored file, against those that are allowed."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from gateway import __version__
from tests.release.packages import (
    LOCK,
    PRODUCTION_LOCK,
    ROOT,
    Pinned,
    installed,
    locked,
    stated_licence,
)

RULES = Path(__file__).with_name("licences.toml")
VENDORED = ROOT / "gateway/console/static/VENDOR.toml"
OPERATORS = {"AND", "OR", "WITH"}


@dataclass(frozen=True, slots=True)
class Rules:
    """The content of `licences.toml`."""

    allowed: frozenset[str]
    exceptions: Mapping[str, tuple[str, str]]
    """By package: licence and reason."""
    names: Mapping[str, str]
    read: Mapping[str, str]
    contents: tuple[tuple[str, str, str], ...]
    """Package, name of a project inside of it, licence."""


@dataclass(frozen=True, slots=True)
class Licensed:
    """A package or a vendored project, with its licence as an SPDX expression where it is one."""

    name: str
    version: str
    licence: str
    part: str


def read_rules(path: Path = RULES) -> Rules:
    """Read the list of allowed licences."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return Rules(
        allowed=frozenset(table["allowed"]),
        exceptions={
            name: (one["licence"], one["reason"]) for name, one in table["exceptions"].items()
        },
        names=table["names"],
        read=table["read"],
        contents=tuple((one["package"], one["name"], one["licence"]) for one in table["contents"]),
    )


def read_vendored() -> list[dict[str, Any]]:
    """Return the entries of projects of which the console has files."""
    packages: list[dict[str, Any]] = tomllib.loads(VENDORED.read_text("utf-8"))["packages"]
    return packages


def licence_of(package: Pinned, rules: Rules) -> str:
    """Return the licence of a package; empty where nothing is known of it."""
    if package.name in rules.read:
        return rules.read[package.name]
    found = installed(package)
    stated = stated_licence(found) if found is not None else ""
    named = rules.names.get(stated, stated)
    try:
        return str(canonicalize_license_expression(named)) if named else ""
    except InvalidLicenseExpression:
        return named


def all_licensed(rules: Rules) -> list[Licensed]:
    """Return every package of an installation, and the projects whose files are vendored."""
    production = {(one.name, one.version) for one in locked(PRODUCTION_LOCK)}
    packages = [
        Licensed(
            one.name,
            one.version,
            licence_of(one, rules),
            "production" if (one.name, one.version) in production else "embedded Postgres",
        )
        for one in locked(LOCK)
    ]
    vendored = [
        Licensed(one["name"], one["version"], one["licence"], "vendored in the console")
        for one in read_vendored()
    ]
    versions = {one.name: one.version for one in packages}
    inside = [
        Licensed(name, f"of {versions.get(package, '?')}", licence, f"inside {package}")
        for package, name, licence in rules.contents
    ]
    return packages + vendored + inside


def refused(licensed: Sequence[Licensed], rules: Rules) -> Iterator[str]:
    """Yield a message for each licence that is not allowed, and for each rule without a use."""
    excepted = {name: licence for name, (licence, _reason) in rules.exceptions.items()}
    for one in licensed:
        allowed = rules.allowed | {excepted.get(one.name, "")}
        if not _is_allowed(one.licence, allowed):
            yield (
                f"{one.name} {one.version} has the licence {one.licence or 'unknown'}, which"
                f" {RULES.name} does not allow: read it, then add it there with the reason, or"
                " use another package."
            )
    names = {one.name for one in licensed}
    named = {*rules.exceptions, *rules.read, *(package for package, *_ in rules.contents)}
    for name in sorted(named - names):
        yield f"{RULES.name} names {name}, which is in no lock file: remove it."


def _is_allowed(expression: str, allowed: frozenset[str]) -> bool:
    """Evaluate an SPDX expression: all of AND, one of OR. AND binds more tightly."""
    words = re.findall(r"[()]|[^\s()]+", expression)
    if not words:
        return False
    text = " ".join(
        word if word in "()" else word.lower() if word in OPERATORS else str(word in allowed)
        for word in words
    )
    while "(" in text:
        text, found = re.subn(r"\( ([^()]*) \)", lambda one: str(_any_of(one[1])), text)
        if not found:
            return False
    return _any_of(text)


def _any_of(text: str) -> bool:
    return any(
        all(word == "True" for word in term.split(" and ")) for term in text.strip().split(" or ")
    )


def report(rules: Rules) -> str:
    """Write the table of licences as Markdown."""
    rows = sorted(all_licensed(rules), key=lambda one: (one.name, one.version))
    lines = [
        f"# Licences of what image-gateway {__version__} consists of",
        "",
        "The gateway itself: Apache-2.0.",
        "",
        "| package | version | licence | part of |",
        "|---|---|---|---|",
        *[f"| {one.name} | {one.version} | {one.licence} | {one.part} |" for one in rows],
        "",
        "Beyond the licences that are allowed in general:",
        "",
        *[
            f"- {name}, {licence}: {reason}"
            for name, (licence, reason) in sorted(rules.exceptions.items())
        ],
    ]
    return "\n".join(lines) + "\n"
