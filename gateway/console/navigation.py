"""The side navigation: one line for each page, in the order shown.

A page adds its line here. The tests read this table too: each page in it is opened in a browser,
checked for accessibility and shown in an image by `make screenshots`.
"""

from dataclasses import dataclass
from typing import Literal

Side = Literal["operator", "tenant"]
"""The part of the console: the operator's, or a tenant's portal."""


@dataclass(frozen=True, slots=True)
class NavigationItem:
    """A link of the navigation; `icon` is a symbol of static/icons.svg."""

    path: str
    label: str
    icon: str


@dataclass(frozen=True, slots=True)
class NavigationGroup:
    """Links under a heading; the first group has none."""

    heading: str
    items: tuple[NavigationItem, ...]


NAVIGATION: dict[Side, tuple[NavigationGroup, ...]] = {
    "operator": (
        NavigationGroup(
            "",
            (
                NavigationItem("/console", "Overview", "layout-dashboard"),
                NavigationItem("/console/costs", "Costs", "chart-column"),
            ),
        ),
        NavigationGroup(
            "Access",
            (
                NavigationItem("/console/people", "People", "users"),
                NavigationItem("/console/people/sessions", "Sessions", "monitor-smartphone"),
            ),
        ),
    ),
    "tenant": (NavigationGroup("", (NavigationItem("/console", "Home", "house"),)),),
}


def current_path(side: Side, path: str) -> str | None:
    """Return the path of the navigation that a page belongs to: its own, or the nearest above."""
    found = [
        item.path
        for group in NAVIGATION[side]
        for item in group.items
        if path == item.path or path.startswith(item.path + "/")
    ]
    longest = max(found, key=len, default=None)
    # Everything lies below /console; that a page has no line of its own does not make it that one.
    return None if longest == "/console" != path else longest
