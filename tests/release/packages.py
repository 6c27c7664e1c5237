"""The packages of a lock file, with what their installed metadata says of them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PRODUCTION_LOCK = ROOT / "requirements-production.lock"
LOCK = ROOT / "requirements.lock"
PROJECT = "image-gateway"
PINNED = re.compile(r"([A-Za-z0-9_.-]+)==(\S+)(?: ; (.+?))? \\$")
HASH = re.compile(r" +--hash=sha256:([0-9a-f]{64})(?: \\)?$")
SHORT_LINE = 100
"""A `License` field that is longer holds the text of a licence."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """A package of a lock file; `marker` says where it is installed."""

    name: str
    version: str
    marker: str | None
    sha256: tuple[str, ...]

    def is_for_this_machine(self) -> bool:
        """Evaluate its marker with this interpreter."""
        return self.marker is None or Marker(self.marker).evaluate()


def locked(path: Path) -> list[Pinned]:
    """Read a lock file."""
    return list(_locked(path.read_text(encoding="utf-8").splitlines()))


def _locked(lines: Sequence[str]) -> Iterator[Pinned]:
    head: re.Match[str] | None = None
    hashes: list[str] = []
    for line in lines:
        if found := HASH.match(line):
            hashes.append(found[1])
            continue
        if head is not None:
            yield Pinned(head[1], head[2], head[3], tuple(sorted(hashes)))
        head, hashes = PINNED.match(line), []
        if head is None:
            raise ValueError(f"Not a package with its hashes: {line}")
    if head is not None:
        yield Pinned(head[1], head[2], head[3], tuple(sorted(hashes)))


def installed(package: Pinned) -> Distribution | None:
    """Return the metadata of a package, None if this environment has another version or none."""
    try:
        found = distribution(package.name)
    except PackageNotFoundError:
        return None
    return found if found.version == package.version else None


def stated_licence(found: Distribution) -> str:
    """Return what a package says of its licence: an SPDX expression, a name or classifiers."""
    metadata = found.metadata
    for field in ("License-Expression", "License"):
        text = str(metadata[field]).strip() if field in metadata else ""
        if text and len(text) < SHORT_LINE and "\n" not in text:
            return text
    classifiers = [str(one) for one in metadata.get_all("Classifier") or []]
    names = [one.split(" :: ")[-1] for one in classifiers if one.startswith("License :: ")]
    return "; ".join(sorted(names))


def needed(name: str, extras: frozenset[str] = frozenset()) -> list[tuple[str, frozenset[str]]]:
    """Return the packages that an installed one needs on this machine, with their extras."""
    found: list[tuple[str, frozenset[str]]] = []
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        wanted = [{"extra": extra} for extra in sorted(extras) or [""]]
        marker = requirement.marker
        if marker is None or any(marker.evaluate(environment) for environment in wanted):
            found.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def dependencies(*extras: str) -> Mapping[str, frozenset[str]]:
    """Return for the gateway, and for each package that it needs to run, those it needs itself."""
    graph: dict[str, frozenset[str]] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(PROJECT, frozenset(extras))]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        following = needed(*one)
        names = {name for name, _extras in following} - {one[0]}
        graph[one[0]] = graph.get(one[0], frozenset()) | names
        waiting += following
    return graph
