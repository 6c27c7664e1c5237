"""The side navigation: one line for each page, in the order shown.

A page adds its line here. The tests read this table too: each page in it is opened in a browser,
checked for accessibility and shown in an image by `make screenshots`.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from gateway.identity.viewers import Permission

Side = Literal["operator", "tenant"]
"""The part of the console: the operator's, or a tenant's portal."""


@dataclass(frozen=True, slots=True)
class NavigationItem:
    """A link of the navigation; `icon` is a symbol of static/icons.svg.

    `needs`: the permission that the page asks for, so that others do not see the link; None: a
    session is enough. `of_key`: it is a page for the holders of API keys alone; False: for all
    others; None: for both.
    """

    path: str
    label: str
    icon: str
    needs: Permission | None = None
    of_key: bool | None = None


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
                NavigationItem(
                    "/console/requests", "Requests", "scroll-text", Permission.OPERATOR_READ
                ),
                NavigationItem(
                    "/console/open-calls",
                    "Open calls",
                    "circle-question-mark",
                    Permission.OPERATOR_READ,
                ),
                NavigationItem(
                    "/console/tenants", "Tenants", "building-2", Permission.OPERATOR_READ
                ),
            ),
        ),
        NavigationGroup(
            "Gateway",
            (
                NavigationItem(
                    "/console/models", "Models and prices", "boxes", Permission.OPERATOR_READ
                ),
                NavigationItem(
                    "/console/budgets", "House budgets", "wallet", Permission.OPERATOR_READ
                ),
                NavigationItem(
                    "/console/webhooks", "Webhooks", "webhook", Permission.OPERATOR_READ
                ),
                NavigationItem(
                    "/console/admin-keys", "Admin keys", "key-round", Permission.OPERATOR_READ
                ),
                NavigationItem("/console/audit", "Audit", "shield-check", Permission.OPERATOR_READ),
                NavigationItem("/console/system", "System", "server", Permission.OPERATOR_READ),
            ),
        ),
        NavigationGroup(
            "Access",
            (
                NavigationItem("/console/people", "People", "users", Permission.OPERATOR_READ),
                NavigationItem(
                    "/console/people/sessions",
                    "All sessions",
                    "monitor-smartphone",
                    Permission.OPERATOR_READ,
                ),
            ),
        ),
    ),
    "tenant": (
        NavigationGroup(
            "",
            (
                NavigationItem("/console", "Home", "house"),
                NavigationItem("/console/this-key", "This key", "key-round", of_key=True),
                NavigationItem(
                    "/console/playground", "Playground", "wand-sparkles", Permission.IMAGES_MAKE
                ),
                NavigationItem("/console/gallery", "Gallery", "images", Permission.IMAGES_READ),
            ),
        ),
        NavigationGroup(
            "Spending",
            (
                NavigationItem("/console/usage", "Usage", "chart-column", Permission.USAGE_READ),
                NavigationItem(
                    "/console/portal/requests", "Requests", "scroll-text", Permission.USAGE_READ
                ),
                NavigationItem(
                    "/console/portal/budgets", "Budgets and limits", "wallet", Permission.USAGE_READ
                ),
            ),
        ),
        NavigationGroup(
            "Set-up",
            (
                NavigationItem("/console/connect", "Connect", "plug"),
                NavigationItem("/console/keys", "API keys", "key-round", Permission.TENANT_READ),
                NavigationItem("/console/users", "Users", "users", Permission.TENANT_READ),
                NavigationItem(
                    "/console/credentials",
                    "Credentials",
                    "lock-keyhole",
                    Permission.OWN_CREDENTIALS,
                ),
                NavigationItem(
                    "/console/portal/webhooks", "Webhooks", "webhook", Permission.TENANT_READ
                ),
            ),
        ),
        NavigationGroup(
            "Access",
            (
                NavigationItem("/console/people", "People", "users", Permission.MEMBERS_CHANGE),
                NavigationItem(
                    "/console/portal/audit",
                    "Audit trail",
                    "history",
                    Permission.TENANT_READ,
                    of_key=False,
                ),
            ),
        ),
    ),
}


def navigation_for(
    side: Side, permissions: Collection[Permission], *, has_key: bool = False
) -> list[NavigationGroup]:
    """Return the links whose pages these permissions open, without empty groups.

    `has_key`: the viewer is the holder of an API key.
    """
    groups = (
        replace(
            group,
            items=tuple(
                item
                for item in group.items
                if (item.needs is None or item.needs in permissions)
                and item.of_key in {None, has_key}
            ),
        )
        for group in NAVIGATION[side]
    )
    return [group for group in groups if group.items]


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
